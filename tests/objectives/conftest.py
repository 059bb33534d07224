"""The stored scores of the tiny model that a module's objectives share."""

import pytest

from personalization.backbones.cached import CachedScorer


@pytest.fixture(scope="module")
def scorer(tiny_model, tmp_path_factory):
    return CachedScorer(str(tiny_model), tmp_path_factory.mktemp("home") / "scores")
