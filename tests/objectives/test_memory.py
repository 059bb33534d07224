"""What is kept in memory never answers for something else."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.classification import Classification
from personalization.backbones.cached import CachedScorer
from personalization.backbones.causal import CausalBackbone
from personalization.data.splits import split_users
from personalization.scoring.fixed import FixedRows
from search_spaces import chain_space
from tests.personalization.stages.chains import ACTIVE, params_of
from tests.tiny import SHARES, short_world


@pytest.fixture(scope="module")
def splits():
    return split_users(short_world(5, users=16, questions_per_user=2), SHARES)


@pytest.fixture(scope="module")
def scorer(tiny_encoder, tmp_path_factory):
    return CachedScorer(str(tiny_encoder), tmp_path_factory.mktemp("memory") / "scores")


def test_another_label_text_under_an_adapter_is_another_pass(splits, scorer):
    params = params_of(("prompt", "adapter", "calibration"), ACTIVE["adapter"][0])
    other = params.with_stage("prompt", replace(params["prompt"], template="category: {label}"))
    space = chain_space(tuple(params))
    one, fresh = (Classification(space, splits, scorer) for _ in range(2))
    for part in ("tune", "confirm"):
        one.evaluate(params, part)
        assert (one.evaluate(other, part).log_probs == fresh.evaluate(other, part).log_probs).all()
        assert np.abs(one.evaluate(other, part).log_probs - one.evaluate(params, part).log_probs).max() > 1e-3


@pytest.mark.parametrize("below", [False, True])
def test_depths_that_a_study_tries_are_read_in_one_pass(splits, tiny_model, tmp_path, monkeypatch, below):
    chain = (*("adapter",) * below, "head", "calibration")
    settings = [ACTIVE["head"][0], *[ACTIVE["adapter"][0]] * below]
    trials = [params_of(chain, *settings, {"head.depth": depth}) for depth in (0.0, 1.0)]
    space, passes = chain_space(chain), []
    for kind in (CausalBackbone, FixedRows):
        monkeypatch.setattr(kind, "last_states", counted(kind.last_states, passes))

    def ran(place, may):
        scorer = CachedScorer(str(tiny_model), tmp_path / place)
        objective = Classification(space, splits, scorer, may=may)
        passes.clear()
        found = [objective.evaluate(params).log_probs for params in trials]
        return found, len(passes)

    together, few = ran("together", {"head": {"depth": [0.0, 1.0]}})
    each, many = ran("each", {})
    assert many == 2 * few  # the model has two layers
    np.testing.assert_allclose(together, each, atol=1e-5)


def test_a_depth_that_was_read_with_others_is_not_read_again_where_it_is_fixed(
    splits, tiny_model, tmp_path, monkeypatch
):
    params = params_of(("head", "calibration"), ACTIVE["head"][0], {"head.depth": 1.0})
    scorer, space, passes = CachedScorer(str(tiny_model), tmp_path), chain_space(("head", "calibration")), []
    several = Classification(space, splits, scorer, may={"head": {"depth": [0.0, 1.0]}})
    first = several.evaluate(params).log_probs
    monkeypatch.setattr(CausalBackbone, "last_states", counted(CausalBackbone.last_states, passes))
    fixed = Classification(space, splits, scorer, may={"head": {"depth": [1.0]}})
    np.testing.assert_allclose(fixed.evaluate(params).log_probs, first, atol=1e-5)
    assert not passes
    fixed.evaluate(params, "confirm")
    assert passes


def counted(read, passes):
    def reading(*given, **named):
        passes.append(given)
        return read(*given, **named)

    return reading


def test_groups_of_tune_users_are_not_taken_for_what_did_not_learn_from_them(splits, scorer):
    params = params_of(("head", "calibration"), ACTIVE["head"][1])
    space = chain_space(tuple(params))
    one, fresh = (Classification(space, splits, scorer) for _ in range(2))
    one.evaluate(params)
    one._tools._memo.pop("scores")
    assert set(one.groups(params, "tune")) == {q.user_id for q in splits.tune.questions}
    changed = params.changed(beta=0.3)
    assert (one.evaluate(changed).log_probs == fresh.evaluate(changed).log_probs).all()
