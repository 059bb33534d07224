"""The mean of arms: what it would bring is told before it is run, and it is what it holds."""

import numpy as np
import pytest

from personalization.evaluation import Evaluation
from studies.auto.pooling import gain
from studies.auto.race import Race
from tests.studies.auto.test_race import plan_of, quick, table, written  # noqa: F401

GOLD = np.zeros(12, dtype=np.int64)


def answers(wrong, rows=range(12)):
    """Right with .9 but for these questions, where the other label has .6."""
    right = np.array([0.4 if row in wrong else 0.9 for row in rows])
    names = tuple(f"q{row}" for row in rows)
    log_probs = np.log(np.column_stack([right, 1 - right]))
    return Evaluation(("a", "b"), names, names, GOLD[: len(names)], log_probs, ["user"] * len(names))


def test_arms_that_err_elsewhere_help_one_another_and_twins_do_not():
    best, other, third = ({"tune": answers(wrong)} for wrong in ({0, 1, 2}, {3, 4, 5}, {6, 7, 8}))
    assert gain([best, other], "accuracy") == pytest.approx(3 / 12)
    assert gain([best, other, third], "accuracy") == pytest.approx(3 / 12)
    assert gain([best, best], "accuracy") == 0.0
    assert gain([best, {"tune": answers(range(12))}], "nll") < 0


def test_arms_are_compared_on_the_parts_that_all_of_them_answer():
    whole = {"tune": answers({8}), "select": answers({0, 1}, rows=range(6))}  # ids are unique in a part alone
    learned = {"select": answers({0}, rows=range(6))}
    assert gain([whole, learned], "accuracy") == pytest.approx(1 / 6)
    assert gain([learned, whole], "accuracy") == 0.0


@pytest.mark.slow
def test_a_race_ends_with_the_mean_of_its_best_arms_where_that_does_better(table, tiny_encoder, monkeypatch):  # noqa: F811
    monkeypatch.setattr("studies.auto.pooling.gain", lambda arms, _: 0.1 * len(arms))
    home = table / "h"
    plan = plan_of(home, tiny_encoder, stages=("prompt", "route"), promotion={"beat_references": False})
    race = Race(plan, home)
    verdict = race.run(table / "deploy")
    entry = race.entries["mean"]
    held = [other for other in race.entries.values() if other.params in entry.params["route"].chains]
    assert len(entry.params["route"].chains) == 3
    assert (entry.arm.chain, entry.params["route"].answer) == (("route",), "mean")
    pooled = np.mean([np.exp(other.seen.log_probs) for other in held], axis=0)
    np.testing.assert_allclose(np.exp(entry.seen.log_probs), pooled, atol=1e-4)
    assert verdict is not None
    again = Race(plan, home)
    again.run(table / "deploy2")
    assert again.entries["mean"].opened.record["id"] == entry.opened.record["id"]


@pytest.mark.slow
def test_a_race_without_a_better_mean_has_none(table, tiny_encoder, monkeypatch):  # noqa: F811
    monkeypatch.setattr("studies.auto.pooling.gain", lambda *_: 0.0)
    race = Race(plan_of(table / "h", tiny_encoder, stages=("prompt", "route")), table / "h")
    race.run(table / "deploy")
    assert "mean" not in race.entries
    assert "mean" not in race.journal.content["arms"]
