import shutil

import numpy as np
import pytest

from personalization.data.lamp import read_dataset
from personalization.deployment import Deployment, read_config
from personalization.errors import UsageError
from personalization.methods.taste.priors import GUESSES
from studies.spec import PromotionSpec
from studies.study import open_study
from studies.verdict import promotion as promotion_module
from studies.verdict.evidence import Evidence
from studies.verdict.promotion import promote
from tests.planted import BiasedScorer


def test_a_real_gain_is_promoted_and_the_config_serves_what_was_tested(tmp_path, make_study, world_folder):
    opened = make_study()
    out = tmp_path / "deploy"
    result = promote(opened, out)
    assert result["promoted"], result["reason"]
    assert result["confirm"]["tests"]["accuracy"]["p_value"] < 0.05
    assert result["confirm"]["users"] == 36
    assert result["confirm"]["alpha"] == pytest.approx(0.05 * 6 / np.pi**2)
    config = read_config(out)
    assert (config["generation"], config["provenance"]["trial"]) == (1, result["trial"])
    deployment = Deployment.load(out)
    confirm = opened.splits.confirm
    answers = deployment.predict(confirm.questions)
    hits = np.mean([a.label == q.gold for a, q in zip(answers, confirm.questions, strict=True)])
    assert hits == pytest.approx(result["confirm"]["accuracy"])
    assert read_dataset(world_folder).labels == tuple(config["labels"])


def looks(opened):
    return Evidence(opened.storage).looks()


def test_promoting_again_looks_at_nothing_and_returns_the_same(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy"
    first = promote(opened, out)
    lines = Evidence(opened.storage).lines()
    config = read_config(out)
    again = promote(opened, out)
    assert again == {**first, "recorded": True}
    assert Evidence(opened.storage).lines() == lines
    assert read_config(out) == config
    shutil.rmtree(out)
    restored = promote(opened, out)
    assert restored["generation"] == 2
    assert read_config(out)["chain"] == config["chain"]


def test_what_was_chosen_learns_from_tune_and_select_before_it_is_tested_and_stays_so(tmp_path, make_study):
    opened, out = make_study(), tmp_path / "deploy"
    first = promote(opened, out)
    params = opened.rooms.of_flat(first["params"])
    learned, apart = (opened.objective.refitting(refit) for refit in (True, False))
    served = Deployment.load(out).aligned(opened.splits.confirm)
    assert first["confirm"]["refit"]
    assert np.abs(served - learned.evaluate(params, "confirm").log_probs).max() <= 1e-5
    assert np.abs(served - apart.evaluate(params, "confirm").log_probs).max() > 1e-4
    shutil.rmtree(out)
    again = promote(with_terms(opened, refit=False), out)  # looked at already: what was tested is what stands
    assert again["recorded"]
    assert (Deployment.load(out).aligned(opened.splits.confirm) == served).all()


def test_a_study_may_keep_its_select_users_out_of_what_is_learned(tmp_path, make_study):
    opened, out = with_terms(make_study(), refit=False), tmp_path / "deploy"
    found = promote(opened, out)
    served = Deployment.load(out).aligned(opened.splits.confirm)
    answered = opened.objective.evaluate(opened.rooms.of_flat(found["params"]), "confirm")
    assert not found["confirm"]["refit"]
    assert np.abs(served - answered.log_probs).max() <= 1e-5


def with_terms(opened, **terms):
    opened.spec = opened.spec.model_copy(update={"promotion": PromotionSpec(**terms)})
    return opened


def test_gates_are_those_of_the_present_terms(tmp_path, make_study):
    opened, out = make_study(), tmp_path / "deploy"
    assert promote(with_terms(opened, min_gain=0.9), out)["reason"].endswith("is below the minimum 0.9")
    assert promote(with_terms(opened, alpha=1e-9), out)["promoted"] is False
    assert not out.exists()
    relaxed = promote(with_terms(opened), out)
    assert (relaxed["promoted"], relaxed["recorded"], relaxed["confirm"]["use"]) == (True, True, 1)
    assert promote(with_terms(opened, min_gain=0.9), tmp_path / "other")["promoted"] is False
    assert len(looks(opened)) == 1


@pytest.mark.parametrize("moved", ["home", pytest.param("second home", marks=pytest.mark.slow), "cleaned"])
def test_evidence_goes_where_the_studies_go(tmp_path, make_study, moved):
    """A home that was moved, another home on the same storage, and a home of which only the studies are left."""
    storage = {"storage": f"sqlite:///{tmp_path / 'shared.db'}"} if moved == "second home" else {}
    opened = make_study(**storage)
    first = promote(opened, tmp_path / "deploy")
    home = tmp_path / "other"
    if moved == "home":
        (tmp_path / "home").rename(home)
    elif moved == "cleaned":
        home.mkdir()
        for path in (tmp_path / "home").glob("studies.db*"):
            path.rename(home / path.name)
    again = promote(open_study(opened.spec, home), tmp_path / "elsewhere")
    assert (again["recorded"], again["confirm"]["use"], again["trial"]) == (True, 1, first["trial"])
    assert again["promoted"]


def test_a_look_is_found_again_through_another_url_of_the_same_storage(tmp_path, make_study):
    """As after a change of its password: what is not the database itself may differ."""
    opened = make_study()
    first = promote(opened, tmp_path / "deploy")
    url = f"sqlite:///{opened.home / 'studies.db'}?timeout=5"
    again = open_study(opened.spec.model_copy(update={"storage": url}), opened.home)
    assert "timeout" not in str(opened.storage.url)
    assert again.storage.url == url
    found = promote(again, tmp_path / "elsewhere")
    assert (found["recorded"], found["confirm"]["use"], found["trial"]) == (True, 1, first["trial"])
    assert found["promoted"]
    assert len(looks(again)) == 1


def test_a_useless_study_is_refused_and_nothing_is_written(tmp_path, make_study):
    class Fair(BiasedScorer):
        bias = 0.0
        skill = 6.0

    opened = make_study(Fair, trials=8)
    result = promote(opened, tmp_path / "deploy")
    assert not result["promoted"]
    assert "better than the baseline" in result["reason"]
    assert result["deploy"] is None
    assert not (tmp_path / "deploy").exists()


def test_no_feasible_trial_is_refused_before_the_confirm_set_is_opened(tmp_path, make_study):
    opened = make_study(constraints={"entropy": ">= 99"}, trials=1)
    result = promote(opened, tmp_path / "deploy")
    assert "no feasible trial" in result["reason"]
    assert looks(opened) == []


def test_a_gain_below_the_minimum_is_refused(tmp_path, make_study):
    result = promote(make_study(promotion={"min_gain": 0.9}), tmp_path / "deploy")
    assert not result["promoted"]
    assert "below the minimum 0.9" in result["reason"]


def test_infeasible_on_confirm_is_refused(tmp_path, make_study, monkeypatch):
    opened = make_study()
    monkeypatch.setattr(promotion_module, "feasible", lambda found, _: found.candidates)
    strict = [type(c)(c.metric, c.sign, 99.0 if c.metric == "entropy" else c.bound) for c in opened.constraints]
    opened.constraints = strict
    result = promote(opened, tmp_path / "deploy")
    assert "not feasible on the confirm users: entropy" in result["reason"]


def test_the_deployed_config_must_be_beaten_too(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy"
    assert promote(opened, out)["promoted"]
    more = make_study(trials=17)
    result = promote(more, out)
    assert not result["promoted"]
    assert "not better than the deployed config's" in result["reason"]
    assert result["confirm"]["use"] == 2
    assert read_config(out)["generation"] == 1


def test_a_look_that_was_opened_and_lost_counts_and_is_finished(tmp_path, make_study, monkeypatch):
    opened = make_study()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion_module, "significance", crash)
        with pytest.raises(KeyboardInterrupt):
            promote(opened, tmp_path / "deploy")
    assert [look.found for look in looks(opened)] == [None]
    result = promote(opened, tmp_path / "deploy")
    assert (result["confirm"]["use"], result["recorded"]) == (1, False)
    assert [look.found is None for look in looks(opened)] == [False]


def test_nothing_that_can_fail_stands_between_a_look_and_its_record(tmp_path, make_study, monkeypatch):
    opened = make_study()

    def crash(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(promotion_module, "write_report", crash)
        with pytest.raises(MemoryError):
            promote(opened, tmp_path / "deploy")
    assert promote(opened, tmp_path / "deploy")["recorded"]


def test_a_promotion_killed_before_the_config_was_written_is_finished(tmp_path, make_study, monkeypatch):
    opened = make_study()
    out = tmp_path / "deploy"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion_module, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            promote(opened, out)
    assert not out.exists()
    result = promote(opened, out)
    assert (result["promoted"], result["recorded"], result["generation"]) == (True, True, 1)
    again = promote(opened, out)
    assert (again["deploy"], again["generation"]) == (str(out), 1)


def test_a_place_that_is_closed_meanwhile_costs_no_second_look(tmp_path, make_study, unprivileged, monkeypatch):
    monkeypatch.setattr("studies.verdict.deployments.refuse_closed", lambda _: None)
    opened, place = make_study(), tmp_path / "place"
    place.mkdir(mode=0o555)
    with unprivileged(), pytest.raises(PermissionError):
        promote(opened, place / "deploy")
    place.chmod(0o755)
    again = promote(opened, place / "deploy")
    assert (again["promoted"], again["recorded"], again["confirm"]["use"]) == (True, True, 1)


@pytest.mark.slow
def test_another_study_on_the_same_confirm_users_is_a_second_look(tmp_path, make_study):
    promote(make_study(), tmp_path / "deploy")
    second = promote(make_study(name="again", seed=5), tmp_path / "other")
    assert second["confirm"]["use"] == 2
    assert second["confirm"]["alpha"] == pytest.approx(0.05 * 6 / (np.pi * 2) ** 2)


@pytest.mark.parametrize(("metric", "direction"), [("nll", "minimize"), ("macro_f1", "maximize")])
def test_a_study_is_judged_by_what_it_optimises_in_its_own_units(tmp_path, make_study, metric, direction):
    result = promote(make_study(optimize={metric: direction}, trials=10), tmp_path / "deploy")
    test = result["confirm"]["tests"][metric]
    sign = 1 if direction == "maximize" else -1
    assert test["delta"] == pytest.approx(sign * (test["after"] - test["before"]), abs=1e-9)
    assert test["after"] == result["confirm"]["metrics"][metric]
    assert f"{metric} better by {test['delta']:+.3f}" in result["reason"]


def test_a_goal_that_says_nothing_about_right_answers_is_refused(tmp_path, make_study):
    opened = make_study(optimize={"changed_rate": "minimize"}, trials=2)
    with pytest.raises(UsageError, match="optimises changed_rate"):
        promote(opened, tmp_path / "deploy")


def test_users_who_are_too_few_are_not_looked_at(tmp_path, make_study, world_folder):
    opened = make_study(
        data={"path": str(world_folder), "shares": {"tune": 0.55, "select": 0.41, "confirm": 0.04}}, trials=4
    )
    result = promote(opened, tmp_path / "deploy")
    assert "5 confirm users cannot show anything" in result["reason"]
    assert looks(opened) == []


@pytest.mark.slow
def test_confirm_users_that_another_study_tuned_on_are_named(tmp_path, make_study, world_folder):
    shares = {"tune": 0.2, "select": 0.1, "confirm": 0.7}
    make_study(name="earlier", trials=1)
    opened = make_study(name="later", data={"path": str(world_folder), "shares": shares})
    result = promote(opened, tmp_path / "deploy")
    assert result["confirm"]["chosen_by"] == {"tune": {"earlier": 24}, "select": {"earlier": 24}}


@pytest.mark.slow
def test_a_reference_that_does_better_refuses(tmp_path, make_study, monkeypatch):
    monkeypatch.setitem(GUESSES, "oracle", lambda _, q: q.gold if q.id.endswith("1") else None)
    opened, out = make_study(), tmp_path / "deploy"
    beside = promote(opened, out)["confirm"]["references"]
    answered = sum(q.id.endswith("1") for q in opened.splits.confirm.questions)
    assert (beside["oracle"]["answered"], beside["oracle"]["n"]) == (answered, len(opened.splits.confirm))
    assert beside["oracle"]["tests"]["accuracy"]["before"] > beside["prior alone"]["tests"]["accuracy"]["before"]
    monkeypatch.setitem(GUESSES, "oracle", lambda _, q: q.gold)
    opened = make_study(name="again")
    result = promote(opened, tmp_path / "other")
    assert "oracle (no model) does better" in result["reason"]
    assert promote(with_terms(opened, beat_references=False, alpha=0.9), tmp_path / "other")["promoted"]


@pytest.mark.slow
def test_a_relative_constraint_is_checked_on_confirm(tmp_path, make_study):
    opened = make_study(constraints={"accuracy_gain": ">= 0.01", "entropy": ">= 0.6"})
    assert promote(opened, tmp_path / "deploy")["promoted"]
