import pytest

from studies.constraints import parse_constraint
from studies.spec import PromotionSpec
from studies.verdict.judgement import judge


def a_test(delta=0.2, p=0.001, low=0.1, high=0.3, before=0.3):
    return {"delta": delta, "p_value": p, "interval": [low, high], "before": before, "after": before + delta}


def found(**changes):
    reference = {"answered": 10, "n": 10, "tests": {"accuracy": a_test(0.1)}}
    evidence = {
        "tests": {"accuracy": a_test(), "nll": a_test(0.0, 1.0, -0.1, 0.1)},
        "metrics": {"entropy": 2.0},
        "incumbent": None,
        "references": {"prior alone": reference},
    }
    return {**evidence, **changes}


def verdict(evidence, terms=None, metrics=("accuracy", "nll"), level=0.03, constraints=()):
    return judge(evidence, list(constraints), terms or PromotionSpec(), list(metrics), level)


def test_a_real_gain_passes():
    assert verdict(found()) == (True, "accuracy better by +0.200, p = 0.0010 < 0.03")


@pytest.mark.parametrize(
    ("changes", "terms", "said"),
    [
        ({"tests": {"accuracy": a_test(p=0.04)}}, {}, "accuracy not better than the baseline's"),
        ({"tests": {"accuracy": a_test(-0.2)}}, {}, "accuracy not better than the baseline's: -0.200"),
        ({}, {"min_gain": 0.21}, "below the minimum 0.21"),
        ({"incumbent": {"accuracy": a_test(p=0.5)}}, {}, "not better than the deployed config's"),
    ],
)
def test_each_gate_of_the_first_goal_refuses_and_says_so(changes, terms, said):
    promoted, reason = verdict(found(**changes), PromotionSpec(**terms), ["accuracy"])
    assert not promoted
    assert said in reason


def test_the_present_constraints_are_applied():
    assert "entropy 2.000" in verdict(found(), constraints=[parse_constraint("entropy", ">= 3")]).reason
    assert verdict(found(), constraints=[parse_constraint("entropy", ">= 1")]).promoted


@pytest.mark.parametrize(
    ("nll", "margins", "passes"),
    [
        (a_test(-3.5, 0.001, -4.0, -3.0), {}, False),
        (a_test(-0.1, 0.4, -0.4, 0.2), {}, True),
        (a_test(-0.1, 0.4, -0.4, 0.2), {"nll": 0.3}, False),
        (a_test(-0.1, 0.001, -0.2, -0.05), {"nll": 0.3}, True),
    ],
)
def test_a_further_goal_must_not_be_worse_by_more_than_its_margin(nll, margins, passes):
    terms = PromotionSpec(margins=margins)
    answer = verdict(found(tests={"accuracy": a_test(), "nll": nll}), terms)
    assert answer.promoted is passes
    assert passes or "nll" in answer.reason
    assert verdict(found(tests={"accuracy": a_test(), "nll": nll}), terms, ["accuracy"]).promoted


def test_a_reference_that_does_better_refuses_unless_it_need_not_be_beaten():
    better = {"last label": {"answered": 5, "n": 10, "tests": {"accuracy": a_test(-0.01)}}}
    promoted, reason = verdict(found(references=better))
    assert not promoted
    assert "last label (no model) does better" in reason
    assert "beat_references: false" in reason
    assert verdict(found(references=better), PromotionSpec(beat_references=False)).promoted
    unlike = {"last label": {"answered": 5, "n": 10, "tests": {"accuracy": a_test(-0.01)}}}
    assert verdict(found(tests={"nll": a_test()}, references=unlike), metrics=["nll"]).promoted


def test_the_level_decides():
    assert verdict(found(), level=0.002).promoted
    assert not verdict(found(), level=0.001).promoted


def a_part(delta, p):
    return {"metric": "accuracy", "why_not": None, "by_question": {"personal": a_test(delta, p)}}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (a_part(0.1, 0.001), None),
        (a_part(0.1, 0.04), "the gain in accuracy is not shown to be personal: +0.100 more than with another user's"),
        (a_part(-0.1, 0.001), "not shown to be personal: -0.100"),
        ({"metric": "accuracy", "why_not": "there is one user", "by_question": {}}, "personal: there is one user"),
        (None, "histories were not exchanged at this look, by an earlier version"),
    ],
)
def test_a_gain_must_be_personal_where_that_is_asked_for(parts, said):
    evidence = found() if parts is None else found(parts=parts)
    promoted, reason = verdict(evidence, PromotionSpec(personal=True))
    assert promoted is (said is None)
    assert promoted or said in reason
    assert verdict(evidence).promoted
