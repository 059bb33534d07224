"""Routing finds what is there to find, and nothing where there is nothing."""

from dataclasses import replace

import numpy as np
import pytest

from personalization.data.records import Dataset
from studies.auto.routing import features, holds_up, routed
from tests.tiny import short_world

SIZES = np.full(200, 5)


def test_users_of_two_kinds_are_told_apart():
    random = np.random.default_rng(0)
    kind = random.choice([-1.0, 1.0], 200)
    told = kind[:, None]
    best = (0.3 + random.normal(0, 0.1, 200)) * SIZES
    other = best + (0.2 * kind - 0.05 + random.normal(0, 0.1, 200)) * SIZES
    found = routed(np.stack([best, other]), SIZES, told)
    assert found.gain == pytest.approx(0.15 * (kind > 0).mean(), abs=0.02)
    assert found.interval[0] > 0
    assert found.moved == pytest.approx((kind > 0).mean(), abs=0.02)


def test_no_rule_learns_from_whom_it_is_asked_about():
    owners = np.repeat(np.arange(100), 2)
    told = np.eye(100)[owners][:, :50]  # what is seen of an owner tells that one alone
    random = np.random.default_rng(1)
    gains = np.stack([np.zeros(200), np.repeat(random.choice([-2.0, 2.0], 100), 2)])
    assert routed(gains, SIZES, told).gain > routed(gains, SIZES, told, owners).gain + 0.02


def test_where_an_arm_is_worse_for_all_nobody_is_moved():
    best = np.full(200, 2.0)
    found = routed(np.stack([best, best - 1]), SIZES, np.zeros((200, 1)))
    assert found == (0.0, (0.0, 0.0), 0.0)


@pytest.mark.slow
def test_equal_arms_gain_nothing_by_routing():
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        gains = random.normal(0, 0.2, (4, 200)) * SIZES
        low, high = routed(gains, SIZES, random.normal(size=(200, 1))).interval
        covered += low <= 0 <= high
    assert covered >= 53


def test_features_read_histories_and_no_gold():
    dataset = short_world(1, 6, 2)
    rows = np.unique([question.user_id for question in dataset.questions], return_inverse=True)[1]
    told = features(dataset, rows)
    assert told.shape == (6, 2)
    assert told.mean(axis=0) == pytest.approx(np.zeros(2), abs=1e-9)
    other = [replace(question, gold=dataset.labels[0]) for question in dataset.questions]
    assert np.array_equal(told, features(Dataset(dataset.task, dataset.labels, tuple(other)), rows))


def test_an_arm_that_moves_nobody_holds_up_nothing():
    gains = np.arange(10.0)
    assert holds_up(gains, gains, np.full(10, 5)) == (0.0, (0.0, 0.0), 0.0)
    found = holds_up(gains + 1, gains, np.full(10, 5))
    assert (found.gain, found.moved) == (pytest.approx(0.2), 1.0)
