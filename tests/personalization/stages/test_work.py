"""What is run under edits is kept: another process reads the scores, with what each edit did."""

import numpy as np
import pytest

from personalization.backbones import SCALE
from personalization.backbones.cached import CachedScorer
from personalization.methods.taste.priors import log_softmax
from personalization.scoring.fixed import Fixed
from personalization.stages.chain import facts, fit
from personalization.stages.work import Tools, begin, scores_of
from tests.personalization.stages.chains import ACTIVE, growing, params_of

SOLVED = ACTIVE["calibration"][1]
EDITED = [
    params_of(("steering", "calibration"), SOLVED, ACTIVE["steering"][1]),
    params_of(("adapter", "calibration"), SOLVED, ACTIVE["adapter"][2]),
    params_of(("adapter", "calibration"), SOLVED, ACTIVE["adapter"][4]),
    params_of(("adapter", "steering", "calibration"), SOLVED, ACTIVE["adapter"][0], ACTIVE["steering"][0]),
]


def tools_in(model, folder):
    """As a new process has them."""
    return Tools(CachedScorer(str(model), folder / "scores"), folder=folder / "adapters")


@pytest.mark.parametrize("params", EDITED, ids=["steering", "own LoRA", "prefix", "LoRA and steering"])
def test_scores_under_edits_and_what_these_did_are_read(params, tiny_model, tmp_path, monkeypatch):
    tune, first, second = growing(4, 8, 2), tools_in(tiny_model, tmp_path), tools_in(tiny_model, tmp_path)
    ran = fit(params, begin(tune, first, "tune"), first)
    told = facts(ran, first)
    monkeypatch.setattr(Fixed, "pass_of", lambda *_: pytest.fail("the model was run again"))
    read = fit(params, begin(tune, second, "tune"), second)
    assert (read.answers.log_probs == ran.answers.log_probs).all()
    assert facts(read, second).metrics == told.metrics
    if "steering" in params:
        assert told.metrics["steering_hook_calls"] > 0


def test_another_edit_is_run(tiny_model, tmp_path, monkeypatch):
    tune, chain = growing(4, 8, 2), ("steering", "calibration")
    first, second = tools_in(tiny_model, tmp_path), tools_in(tiny_model, tmp_path)
    near = fit(params_of(chain, SOLVED, ACTIVE["steering"][0]), begin(tune, first, "tune"), first)
    passes, real = [], Fixed.pass_of
    monkeypatch.setattr(Fixed, "pass_of", lambda *given: passes.append(given) or real(*given))
    further = params_of(chain, SOLVED, {**ACTIVE["steering"][0], "steering.alpha_personal": 2.5})
    far = fit(further, begin(tune, second, "tune"), second)
    assert passes
    assert np.abs(scores_of(far.tune[1], second) - scores_of(near.tune[1], first)).max() > 1e-3


def test_an_encoders_scale_holds_under_an_adapter(tiny_encoder, tmp_path):
    tune, tools = growing(4, 8, 2), tools_in(tiny_encoder, tmp_path)
    chain, adapter = ("prompt", "adapter", "calibration"), {**ACTIVE["adapter"][2], "adapter.blend": 1.0}
    usual, sharp = (
        scores_of(fit(params_of(chain, SOLVED, adapter, given), begin(tune, tools, "tune"), tools).tune[2], tools)
        for given in ({"prompt.scale": float(SCALE)}, {"prompt.scale": 2.5 * SCALE})
    )
    assert np.abs(log_softmax(sharp) - log_softmax(np.float32(2.5) * usual)).max() < 1e-4
