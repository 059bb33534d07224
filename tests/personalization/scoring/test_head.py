import numpy as np
import pytest
import torch
from transformers import CohereConfig, GraniteConfig
from transformers.models.auto import AutoModelForCausalLM

from personalization.scoring import head
from personalization.scoring.candidates import build_tree
from personalization.scoring.head import find_head, read_labels
from tests.tiny import SIZES, make_model

CANDIDATES = [[1], [1, 2], [1, 2, 3], [4, 5], [6]]


@pytest.mark.parametrize("config", [CohereConfig, GraniteConfig], ids=["scaled", "divided"])
def test_scaled_logits_are_those_of_the_model(config):
    extra = {"logit_scale": 0.25} if config is CohereConfig else {"logits_scaling": 8.0}
    model = AutoModelForCausalLM.from_config(config(**SIZES, **extra, num_key_value_heads=2, pad_token_id=0)).eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        states = model.model(ids)[0]
        assert torch.allclose(find_head(model)(states), model(ids).logits, atol=1e-6)
        assert not torch.allclose(model.lm_head(states), model(ids).logits, atol=1e-2)


def test_capped_logits_are_those_of_the_model():
    model = make_model("gemma2")
    model.config.final_logit_softcapping = 2.0
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        states = model.model(ids)[0]
        assert torch.allclose(find_head(model)(states), model(ids).logits, atol=1e-6)
        assert float(find_head(model)(states).abs().max()) <= 2.0


@pytest.mark.parametrize("logits_at_once", [1, 400, 1000, 10**9])
def test_only_places_reach_the_head_and_in_slices(monkeypatch, logits_at_once):
    monkeypatch.setitem(head.SLICE, "cpu", logits_at_once)
    model, tree = make_model("llama"), build_tree(CANDIDATES)
    states = torch.randn(7, 1 + len(tree.tokens), 32)
    seen = []

    def spied(x):
        seen.append(len(x))
        return model.lm_head(x)

    with torch.inference_mode():
        ours = read_labels(spied, states, tree).numpy()
        steps = model.lm_head(states).double().log_softmax(-1).numpy()
    assert sum(seen) == 7 * (1 + len(tree.tokens))
    assert max(seen) <= max(1, logits_at_once // 400)
    for k, candidate in enumerate(CANDIDATES):
        expected = sum(steps[:, tree.places[k, j], token] for j, token in enumerate(candidate))
        assert np.abs(ours[:, k] - expected).max() <= 1e-5
