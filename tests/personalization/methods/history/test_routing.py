"""Who is better off with which chain."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from personalization.data.records import Dataset
from personalization.methods.history.routing import features, held_out, learned
from tests.personalization.stages.chains import growing

USERS = [f"u{row // 4}" for row in range(400)]


def two_kinds(random, lead=0.1):
    """Features [n, 2], and hits of two chains: the second is right for those with the first feature above 0."""
    told = random.normal(size=(400, 2))
    first = random.random(400) < np.where(told[:, 0] > 0, 0.3, 0.8 + lead)
    return told, np.stack([first, random.random(400) < np.where(told[:, 0] > 0, 0.8, 0.3)])


def test_questions_go_where_they_are_better_off():
    told, hits = two_kinds(np.random.default_rng(0))
    chosen = learned(told, hits, 10.0).arms(told)
    assert np.mean(chosen == (told[:, 0] > 0)) > 0.9
    assert np.mean(held_out(told, hits, USERS, 10.0) == (told[:, 0] > 0)) > 0.9


def test_the_larger_the_penalty_the_more_keep_the_first_chain():
    told, hits = two_kinds(np.random.default_rng(0), lead=0.2)
    moved = [learned(told, hits, penalty).arms(told).sum() for penalty in (1.0, 100.0, 1e3, 1e6)]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 0 == moved[-1]


def test_it_is_the_ridge_of_scikit_learn():
    told, hits = two_kinds(np.random.default_rng(1))
    found = learned(told, hits, 7.0)
    model = Ridge(alpha=7.0).fit((told - found.means) / found.spreads, hits[1].astype(float) - hits[0])
    assert found.weights[0] == pytest.approx(model.coef_)
    assert found.gains[0] == pytest.approx(model.intercept_)


def test_no_user_is_sent_by_what_was_learned_from_that_user():
    random = np.random.default_rng(2)
    told, hits = two_kinds(random)
    mine = [row for row, user in enumerate(USERS) if user == "u3"]
    changed = hits.copy()
    changed[:, mine] = ~changed[:, mine]
    assert (held_out(told, hits, USERS, 1.0)[mine] == held_out(told, changed, USERS, 1.0)[mine]).all()


def test_features_are_of_what_is_known():
    world = growing(3, 4)
    told = features(world)
    by_hand = [np.log1p(len(question.history)) for question in world.questions]
    assert told[:, 0] == pytest.approx(by_hand)
    nobody = Dataset(
        world.task, world.labels, (world.questions[0].__class__("x", "new", world.questions[0].text, (), None),)
    )
    assert features(nobody).tolist() == [[0.0, 0.0]]
    assert features(Dataset(world.task, world.labels, ())).shape == (0, 2)
