"""The groups of users are those of the stages below, and asking for them changes no answer."""

import numpy as np
import pytest

from objectives.classification import Classification
from personalization.data.splits import split_users
from personalization.stages import chain
from search_spaces import chain_space
from tests.tiny import SHARES, short_world

STEERED = {"steering.alpha_personal": 2.0, "steering.start": 0.0, "steering.scope": "all"}
HEAD = {"head.head": "logistic", "head.blend": 1.0, "head.level": "cluster", "head.groups": 2, "head.depth": 0.9}


@pytest.fixture(scope="module")
def make(scorer):
    """A function that makes a task on the same stored scores, with nothing in memory."""
    splits = split_users(short_world(7, users=12, questions_per_user=2), SHARES)
    return lambda: Classification(chain_space(("steering", "head")), splits, scorer)


def test_asking_for_groups_above_an_edit_leaves_the_answers_without_it(make):
    space = chain_space(("steering", "head"))
    plain, steered = space.of_full(HEAD), space.of_full({**STEERED, **HEAD})
    expected = make().evaluate(plain, "confirm").log_probs
    asked = make()
    asked.groups(steered, "confirm")
    assert np.abs(asked.evaluate(plain, "confirm").log_probs - expected).max() <= 1e-5
    assert np.abs(asked.evaluate(steered, "confirm").log_probs - expected).max() > 1e-3


def test_groups_of_tune_users_need_nothing_of_other_users(make, monkeypatch):
    objective, params = make(), chain_space(("steering", "head")).of_full(HEAD)
    everybody = objective.groups(params, "select")
    monkeypatch.setattr(chain, "extended", lambda *_: pytest.fail("what belongs to each user was learned of everybody"))
    tune = objective.groups(params, "tune")
    assert set(tune) == {q.user_id for q in objective.splits.tune.questions}
    assert set(tune.values()) == {0, 1}
    assert not everybody.keys() & tune.keys()
