"""A small world with its splits, and the stored scores of the tiny model that a module's objectives share."""

import pytest

from personalization.backbones.cached import CachedScorer
from personalization.data.splits import split_users
from tests.tiny import SHARES, short_world


@pytest.fixture(scope="module")
def world():
    return short_world(5, users=24, questions_per_user=2)


@pytest.fixture(scope="module")
def splits(world):
    return split_users(world, SHARES)


@pytest.fixture(scope="module")
def scorer(tiny_model, tmp_path_factory):
    return CachedScorer(str(tiny_model), tmp_path_factory.mktemp("home") / "scores")
