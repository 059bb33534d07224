"""What a gain consists of."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from personalization.evaluation import Evaluation
from tests.tiny import random_evaluation
from tracking.parts import flat, mean_for, parts_of_gain, parts_table, sentences
from tracking.significance import paired_test, significance, user_totals


def right(answers, users):
    """An evaluation that is right where `answers` [n] says so."""
    hits = np.asarray(answers, dtype=bool)
    log_probs = np.log(np.where(hits[:, None], [0.9, 0.1], [0.1, 0.9]))
    ids = tuple(map(str, range(len(hits))))
    return Evaluation(
        ("a", "b"), ids, tuple(users), np.zeros(len(hits), dtype=np.int64), log_probs, ["user"] * len(hits)
    )


def rings(evaluation):
    return {user: number // 2 for number, user in enumerate(evaluation.users[0])}


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_a_gain_is_the_sum_of_its_parts_and_that_of_the_paired_test(evaluations, metric):
    other = random_evaluation(3, skill=1.0)
    parts = parts_of_gain(evaluations, (evaluations[0], other), rings(other), metric)
    for weight in ("by_question", "by_user"):
        deltas = {part: test["delta"] for part, test in parts[weight].items()}
        assert deltas["gain"] == pytest.approx(deltas["general"] + deltas["personal"])
        assert all(test["interval"][0] <= test["delta"] <= test["interval"][1] for test in parts[weight].values())
    test, gain = paired_test(*evaluations, metric), parts["by_question"]["gain"]
    assert gain["delta"] == pytest.approx(test["delta"])
    assert gain["interval"] == pytest.approx(test["interval"], abs=1e-9)
    assert gain["p_value"] == test["p_value"]
    if metric == "accuracy":
        mean = significance(*evaluations)["delta_accuracy_user_mean"]
        assert parts["by_user"]["gain"]["delta"] == pytest.approx(mean)


def test_by_user_every_user_counts_the_same():
    users = ["many"] * 8 + ["a", "b", "c"]
    before, after = right([0] * 11, users), right([1] * 8 + [0] * 3, users)
    gain = {w: parts_of_gain((before, after), None, {}, "accuracy")[w]["gain"] for w in ("by_question", "by_user")}
    assert gain["by_question"]["delta"] == pytest.approx(8 / 11)
    assert gain["by_user"]["delta"] == pytest.approx(1 / 4)


def test_parts_are_flipped_by_those_who_exchanged():
    """Against all sign patterns of six pairs."""
    users = [f"u{n // 2}" for n in range(24)]
    random = np.random.default_rng(4)
    before = right([0] * 24, users)
    own, other = (right(random.random(24) < share, users) for share in (0.8, 0.3))
    pairs = rings(own)
    found = parts_of_gain((before, own), (before, other), pairs, "accuracy")["by_question"]["personal"]
    sums, _ = user_totals(
        replace(own, user_ids=tuple(str(pairs[user]) for user in users)), own.correct.astype(int) - other.correct
    )
    signs = itertools.product((1, -1), repeat=len(sums))
    reached = [abs(np.dot(pattern, sums)) >= abs(sums.sum()) for pattern in signs]
    assert found["p_value"] == pytest.approx(np.mean(reached))


def test_what_reads_no_history_has_no_personal_part():
    same = random_evaluation(2, skill=2.0)
    before = random_evaluation(1, skill=0.5)
    for metric in ("accuracy", "nll", "brier"):
        parts = parts_of_gain((before, same), (before, same), rings(same), metric)
        for weight in ("by_question", "by_user"):
            assert parts[weight]["personal"] == {"delta": 0.0, "interval": [0.0, 0.0], "p_value": 1.0}


def test_a_part_that_is_not_there_is_not_found(monkeypatch):
    """Whose history a question gets does not matter, but some histories are better than others."""
    monkeypatch.setattr("tracking.significance.RESAMPLES", 199)
    found = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        users, owners = [f"u{n // 4}" for n in range(80)], np.arange(80) // 4
        worth = random.random(20)
        before = right([0] * 80, users)
        own = right(random.random(80) < worth[owners], users)
        other = right(random.random(80) < worth[owners ^ 1], users)
        parts = parts_of_gain((before, own), (before, other), rings(own), "accuracy")
        found += parts["by_question"]["personal"]["p_value"] < 0.1
    assert found <= 12  # of 60 at level .1; a valid test exceeds it once in fifty times


def test_parts_are_said_in_numbers_lines_and_a_table(evaluations):
    parts = {**parts_of_gain(evaluations, evaluations, rings(evaluations[0]), "accuracy"), "off_by": 1, "why_not": None}
    names = {f"{part}_{weight}" for part in ("gain", "general", "personal") for weight in ("by_question", "by_user")}
    assert set(flat(parts)) == names | {f"{name}_p" for name in names}
    assert "personal +0.000 [+0.000, +0.000], p = 1.0000" in sentences(parts)[0]
    table = parts_table(parts, "n")
    assert "| personal | +0.0000 |" in table
    assert "by 1 items" in table
    alone = {**parts_of_gain(evaluations, None, {}, "accuracy"), "off_by": None, "why_not": "one user"}
    assert list(alone["by_user"]) == ["gain"]
    assert "no parts: one user" in parts_table(alone, "n")
    assert "general" not in sentences(alone)[0]


def test_what_is_no_mean_has_the_parts_of_accuracy():
    assert [mean_for(metric) for metric in ("nll", "mae", "macro_f1")] == ["nll", "mae", "accuracy"]
