"""What a server does for a request: no pass whose result is not used, nothing that grows, nothing on disk."""

from dataclasses import replace

import numpy as np
import pytest

from personalization.backbones.cached import CachedScorer
from personalization.methods.steering import learned
from personalization.scoring.packed import Packed
from personalization.stages import chain
from personalization.stages.work import Tools, begin
from tests.personalization.stages.chains import ACTIVE, fitted_on, growing, params_of

PLAIN = ACTIVE["calibration"][0]


@pytest.fixture(scope="module")
def asked():
    return growing(5, 4)


@pytest.fixture(scope="module")
def tools(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return Tools(CachedScorer(str(tiny_model), folder / "scores"), folder=folder / "adapters")


@pytest.fixture
def passes(monkeypatch):
    """The prompts of every forward pass."""
    seen = []
    real = Packed.read

    def counted(self, layouts, prompts, prefix=None):
        seen.append(prompts)
        return real(self, layouts, prompts, prefix)

    monkeypatch.setattr(Packed, "read", counted)
    return seen


def fitted(tools, chosen):
    return fitted_on(growing(4, 8, 2), params_of(("adapter", "steering", "calibration"), PLAIN, *chosen), tools)


def ask(found, served, dataset):
    return chain.answer(found, begin(dataset, served), served).answer.log_probs


def test_a_user_who_comes_again_is_steered_without_asking_about_the_history_again(tools, asked, passes):
    found, served = fitted(tools, [ACTIVE["steering"][0]]), Tools(tools.scorer.unstored())
    first = ask(found, served, asked)
    passes.clear()
    again = ask(found, served, asked)
    assert np.abs(first - again).max() <= 1e-5
    assert sum(passes) == len(asked)


def test_what_is_remembered_is_bounded(tools, asked, monkeypatch):
    monkeypatch.setattr(learned, "REMEMBERED", 3)
    found, served = fitted(tools, [ACTIVE["steering"][0]]), Tools(tools.scorer.unstored())
    ask(found, served, asked)
    assert [len(kept) for kept in served._memo["directions of histories"].values()] == [3]


def test_chains_of_one_server_that_word_a_history_in_two_ways_share_no_directions(tools, asked):
    def worded(dataset):
        wordings = {"short": {"prompt": "{{history}}{{text}} ->", "history": {"item": "{{text}} -> {{label}}"}}}
        return replace(dataset, task=dataset.task.model_copy(update={"wordings": wordings}))

    params = params_of(("prompt", "steering", "calibration"), PLAIN, ACTIVE["steering"][0])
    arms = [
        fitted_on(worded(growing(4, 8, 2)), params.changed(prompt__wording=wording), tools)
        for wording in ("own", "short")
    ]
    served = Tools(tools.scorer.unstored())
    together = [ask(arm, served, worded(asked)) for arm in arms]
    alone = [ask(arm, Tools(tools.scorer.unstored()), worded(asked)) for arm in arms]
    assert all(np.abs(one - other).max() <= 1e-5 for one, other in zip(together, alone, strict=True))


def test_adapters_that_answer_alone_cost_no_pass_of_the_model_itself(tools, asked, passes):
    found, served = fitted(tools, [ACTIVE["adapter"][0]]), Tools(tools.scorer.unstored())
    ask(found, served, asked)
    passes.clear()
    ask(found, served, asked)
    assert sum(passes) == len(asked)


def test_a_server_writes_nothing(tools, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for chosen in (ACTIVE["steering"][1], ACTIVE["adapter"][1]):
        found, served = fitted(tools, [chosen]), Tools(tools.scorer.unstored())
        before = sorted(tools.folder.parent.rglob("*"))
        ask(found, served, asked)
        assert sorted(tools.folder.parent.rglob("*")) == before
    assert not list(tmp_path.iterdir())
