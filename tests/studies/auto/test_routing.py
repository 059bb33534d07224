"""Routing finds what is there to find, and nothing where there is nothing."""

import numpy as np
import pytest

from personalization.evaluation import Evaluation
from studies.auto.routing import features, routed
from tests.tiny import short_world

SIZES = np.full(200, 5)


def test_users_of_two_kinds_are_told_apart():
    random = np.random.default_rng(0)
    kind = random.choice([-1.0, 1.0], 200)
    told = np.column_stack([np.ones(200), kind])
    best = (0.3 + random.normal(0, 0.1, 200)) * SIZES
    other = best + (0.2 * kind - 0.05 + random.normal(0, 0.1, 200)) * SIZES
    found = routed(np.stack([best, other]), SIZES, told)
    assert found.gain == pytest.approx(0.15 * (kind > 0).mean(), abs=0.02)
    assert found.interval[0] > 0
    assert found.moved == pytest.approx((kind > 0).mean(), abs=0.02)


def test_where_an_arm_is_worse_for_all_nobody_is_moved():
    best = np.full(200, 2.0)
    found = routed(np.stack([best, best - 1]), SIZES, np.ones((200, 1)))
    assert found == (0.0, (0.0, 0.0), 0.0)


@pytest.mark.slow
def test_equal_arms_gain_nothing_by_routing():
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        gains = random.normal(0, 0.2, (4, 200)) * SIZES
        low, high = routed(gains, SIZES, np.column_stack([np.ones(200), random.normal(size=200)])).interval
        covered += low <= 0 <= high
    assert covered >= 53


def test_features_read_histories_and_predictions_and_no_gold():
    dataset = short_world(1, 6, 2)
    ids, owners = (tuple(getattr(q, name) for q in dataset.questions) for name in ("id", "user_id"))
    random = np.random.default_rng(0)

    def answers(gold):
        table = np.log(np.random.default_rng(1).dirichlet(np.ones(len(dataset.labels)), len(ids)))
        return Evaluation(dataset.labels, ids, owners, gold, table, ["user"] * len(ids))

    users = list(dict.fromkeys(owners))
    golds = [random.integers(0, len(dataset.labels), len(ids)) for _ in range(2)]
    told = [features(dataset, users, [answers(gold), answers(gold)]) for gold in golds]
    assert told[0].shape == (6, 4)
    assert np.array_equal(*told)
    assert told[0][:, 1:].mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)
