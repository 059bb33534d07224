"""Reading label log-probabilities from hidden states.

Only the places where a candidate's token is predicted reach the LM head, and they reach it in slices, so that the
largest array is `SLICE` logits whatever the batch, the number of candidates and the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from personalization.errors import DataError
from personalization.scoring.candidates import CandidateTree

SLICE = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Logits that exist at once, by device type."""

Head = Callable[[Tensor], Tensor]

DISAGREES = (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError, KeyError)
"""What a model may raise where it is not built as expected; one row a candidate serves it then."""


def find_head(model: PreTrainedModel) -> Head | None:
    """The map from last hidden states [..., d] to logits [..., V], or None where it is not one of the known forms.

    After the output embedding a model may scale its logits (Cohere, Granite) and cap them (Gemma 2). The config says
    so, and the model's own logits for a few tokens must agree. Raises DataError for a model that is not causal.
    """
    config = model.config.get_text_config()
    project = model.get_output_embeddings()
    if project is None or model.base_model is model:
        return None
    cap = getattr(config, "final_logit_softcapping", None)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    def head(states: Tensor) -> Tensor:
        logits = project(states)
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device) % config.vocab_size
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
        if not torch.allclose(expected[0, :3], expected[1, :3], rtol=1e-2, atol=1e-2, equal_nan=True):
            raise DataError(
                f"a {config.model_type} model sees what comes after a token; a causal language model is needed"
            )
        try:
            logits = head(model.base_model(input_ids=ids, use_cache=False)[0])
        except DISAGREES:
            return None
    agrees = logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-3, atol=1e-3)
    return head if agrees else None


def read_labels(head: Head, states: Tensor, tree: CandidateTree) -> Tensor:
    """Hidden states at the places of a tree [n, 1 + N, d] -> float32 [n, K] on the CPU.

    log p(candidate) = sum over its tokens of logit - logsumexp over the vocabulary, in float32.
    """
    n, places, width = states.shape
    flat = states.reshape(n * places, width)
    targets = torch.from_numpy(tree.targets).to(flat.device)
    steps = torch.empty(n * places, targets.shape[1], device=flat.device)
    start, size = 0, 1
    while start < len(flat):
        end = min(start + size, len(flat))
        logits = head(flat[start:end]).float()
        wanted = targets[torch.arange(start, end, device=flat.device) % places]
        steps[start:end] = logits.gather(1, wanted) - logits.logsumexp(dim=1, keepdim=True)
        start, size = end, max(1, SLICE.get(flat.device.type, SLICE["cpu"]) // logits.shape[1])
    places_of, slots = (torch.from_numpy(a).to(flat.device) for a in (tree.places, tree.slots))
    real = (torch.arange(tree.places.shape[1]) < torch.from_numpy(tree.lengths)[:, None]).to(flat.device)
    return steps.view(n, places, -1)[:, places_of, slots].where(real, 0.0).sum(dim=-1).cpu()
