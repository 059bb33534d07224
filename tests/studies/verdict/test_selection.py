"""The shortlist, and which trial is looked at."""

from dataclasses import replace

import numpy as np
import pytest

from studies.verdict.promotion import promote
from studies.verdict.selection import choose, shortlist


def test_the_shortlist_differs_in_labels_and_the_largest_gain_is_chosen(make_study):
    opened = make_study()
    found = shortlist(opened)
    assert 1 < len(found.candidates) <= 5
    labels = {opened.objective.evaluate(c.params).predicted.tobytes() for c in found.candidates}
    assert len(labels) == len(found.candidates)
    assert len(found.baseline.gold) == len(opened.splits.tune) + len(opened.splits.select)
    chosen = choose(found, found.candidates, ["accuracy"], {}, 0.05)
    assert chosen.seen.metrics["accuracy"] == max(c.seen.metrics["accuracy"] for c in found.candidates)


def improved(evaluation, count):
    """The same answers, of which so many wrong ones are right."""
    z, wrong = evaluation.log_probs.copy(), np.flatnonzero(~evaluation.correct)[:count]
    z[wrong, evaluation.gold[wrong]] = z[wrong].max(axis=1) + 1
    return replace(evaluation, log_probs=z - np.logaddexp.reduce(z, axis=1, keepdims=True))


def test_a_gain_within_the_error_of_an_accuracy_is_kept_from_what_is_simpler_and_better_on_tune(make_study):
    found = shortlist(make_study())
    base = found.baseline.metrics["accuracy"]
    better = improved(found.baseline, 4)
    gained = better.metrics["accuracy"] - base
    assert 0 < gained < np.sqrt(base * (1 - base) / len(better.gold))
    simple = replace(found.candidates[0], seen=found.baseline, complexity=0.0, tune_value=1.0)
    real = replace(found.candidates[1], seen=better, complexity=9.0, tune_value=0.0)
    assert choose(found, [simple, real], ["accuracy"], {}, 0.05) is real
    slight = replace(simple, seen=improved(found.baseline, 3))
    assert choose(found, [slight, real], ["accuracy"], {}, 0.05) is real
    as_good = replace(simple, seen=better)
    assert choose(found, [real, as_good], ["accuracy"], {}, 0.05) is as_good


def test_the_baseline_is_a_candidate(make_study):
    found = shortlist(make_study())
    best = max(c.seen.metrics["accuracy"] for c in found.candidates)
    as_good = replace(found, baseline=next(c.seen for c in found.candidates if c.seen.metrics["accuracy"] == best))
    assert choose(as_good, found.candidates, ["accuracy"], {}, 0.05) is None


def test_answers_by_what_learned_from_tune_users_are_judged_on_select_alone(make_study, monkeypatch):
    opened = make_study()
    monkeypatch.setattr(type(opened.objective), "learned_labels", lambda *_: True)
    found = shortlist(opened)
    assert found.baseline.user_ids == tuple(q.user_id for q in opened.splits.select.questions)
    worse = replace(found, candidates=[replace(c, seen=found.baseline) for c in found.candidates])
    better = found.candidates[0].seen
    assert choose(replace(worse, baseline=better), worse.candidates, ["accuracy"], {}, 0.05) is None
    assert choose(found, found.candidates, ["accuracy"], {}, 0.05) is not None


@pytest.mark.slow
def test_several_goals_spread_the_shortlist_over_the_front_and_none_is_sold_for_another(tmp_path, make_study):
    opened = make_study(optimize={"accuracy": "maximize", "nll": "minimize"}, trials=60)
    on_front = {t.number for t in opened.study.best_trials}
    found = shortlist(opened)
    listed = [c.trial for c in found.candidates]
    assert set(listed[: len(on_front)]) <= on_front
    by_likelihood = sorted(on_front, key=lambda number: opened.study.trials[number].values[1])
    assert by_likelihood[0] in listed
    dishonest = [replace(c, seen=sharpened(c.seen)) for c in found.candidates]
    assert choose(found, dishonest, ["accuracy", "nll"], {}, 0.05) is None
    assert choose(found, dishonest, ["accuracy", "nll"], {"nll": 1000.0}, 0.05) is not None
    result = promote(opened, tmp_path / "deploy")
    assert set(result["confirm"]["tests"]) == {"accuracy", "nll"}


def sharpened(evaluation):
    """The same labels, said with far too much confidence."""
    z = 60 * evaluation.log_probs
    return replace(evaluation, log_probs=z - np.logaddexp.reduce(z, axis=1, keepdims=True))


@pytest.mark.slow
def test_a_fixed_tau_stays_and_a_free_one_is_settled(make_study):
    fixed = shortlist(make_study(space={"tau": 2.5}, name="fixed")).candidates
    assert {c.params["calibration"].tau for c in fixed} == {2.5}
    free = make_study(name="free")
    for candidate in shortlist(free).candidates:
        trial = free.rooms.decode(free.study.trials[candidate.trial].params)
        before, after = free.objective.evaluate(trial), free.objective.evaluate(candidate.params)
        assert after.metrics["nll"] <= before.metrics["nll"] + 1e-9
