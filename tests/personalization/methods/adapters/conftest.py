"""A world, a tiny causal model and what trains adapters of it, for each module."""

import pytest

from personalization.backbones.cached import CachedScorer
from personalization.methods.adapters.user_adapters import UserAdapters
from tests.tiny import short_world


@pytest.fixture(scope="module")
def world():
    return short_world(7, users=16, questions_per_user=2)


@pytest.fixture(scope="module")
def scorer(tiny_model, tmp_path_factory):
    return CachedScorer(str(tiny_model), tmp_path_factory.mktemp("home") / "scores")


@pytest.fixture(scope="module")
def adapters(scorer):
    return UserAdapters(scorer, scorer.folder.parent / "adapters")
