"""The last block at the places that are read: the same scores and gradients, for fewer tokens."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from personalization.scoring import packed
from personalization.scoring.last_block import last_block, narrowed, read_places
from personalization.scoring.resume import captured_output
from tests.personalization.scoring.test_fixed import LABELS, OWNERS, PROMPTS, backbone, lora, steering  # noqa: F401

PLACES = np.array([[0, 2, 3], [0, 5, 3], [1, 1, 4]])


def everywhere(monkeypatch):
    monkeypatch.setattr(packed, "only_read", lambda *_: nullcontext())


def at_places(module, places=PLACES):
    """A context in which a module runs at these places of a batch [2, 9]."""
    at = read_places(places, (2, 9), torch.device("cpu"))
    return nullcontext() if at is None else narrowed(module, at, (2, 9))


def test_a_block_of_which_something_is_captured_runs_everywhere(backbone):  # noqa: F811
    parts = last_block(backbone.model)
    for module in (backbone.layers[-1], parts.mlp):
        with captured_output(module):
            assert last_block(backbone.model) is None
    assert last_block(backbone.model) == parts


def test_a_llama_saves_its_queries_the_attention_and_what_is_behind(backbone):  # noqa: F811
    block, found = backbone.layers[-1], last_block(backbone.model)
    own = block.self_attn
    assert found == (block.mlp, own, (own.q_proj, own.o_proj))


@pytest.mark.parametrize("sharing", ["any", "none", OWNERS])
def test_scores_are_those_of_a_block_that_runs_everywhere(backbone, sharing, monkeypatch):  # noqa: F811
    def scores():
        edits = [lora(backbone, 1), steering(backbone, 2, site="mlp")] if sharing is OWNERS else []
        return backbone.fixed(PROMPTS, LABELS, edits).table(edits)

    run = []
    with (
        captured_output(last_block(backbone.model).mlp.down_proj) as inner,
        captured_output(backbone.layers[0]) as outer,
    ):
        saved = scores()
        run += [sum(states.shape[0] * states.shape[1] for states in seen) for seen in (inner, outer)]
    everywhere(monkeypatch)
    np.testing.assert_allclose(saved, scores(), atol=2e-5)
    assert run[0] < 0.8 * run[1]


def test_gradients_are_those_of_a_block_that_runs_everywhere(backbone, monkeypatch):  # noqa: F811
    def gradients():
        edit = lora(backbone, 1)
        rows = backbone.fixed(PROMPTS, LABELS, [edit])
        for number in range(rows.batches):
            rows.scores(number, [edit])[:, 0].sum().backward()
        return [parameter.grad for parameter in edit.adapters.parameters]

    saved = gradients()
    everywhere(monkeypatch)
    for ours, plain in zip(saved, gradients(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_the_module_runs_where_it_is_read_and_nowhere_else():
    mlp, states = nn.Linear(4, 3), torch.randn(2, 9, 4)
    before = vars(mlp).copy()
    whole = mlp(states)
    with at_places(mlp):
        some = mlp(states)
    read = torch.zeros(2, 9, dtype=torch.bool)
    read[PLACES[:, :1], PLACES[:, 1:]] = True
    torch.testing.assert_close(some[read], whole[read])
    assert int((some != 0).any(dim=-1).sum()) == 6  # the fullest row reads three columns
    assert torch.equal(mlp(states), whole)
    assert vars(mlp).keys() == before.keys()


class Pair(nn.Linear):
    """Gives more than states."""

    def forward(self, states):
        return super().forward(states), None


@pytest.mark.parametrize(
    ("mlp", "states", "places"),
    [
        (nn.Linear(4, 3), torch.randn(18, 4), PLACES),  # rows and places joined
        (Pair(4, 3), torch.randn(2, 9, 4), PLACES),
        (nn.Linear(4, 3), torch.randn(2, 9, 4), np.stack([np.r_[row, :9] for row in (0, 1)])),  # all is read
    ],
)
def test_what_cannot_be_saved_runs_everywhere(mlp, states, places):
    whole = mlp(states)
    with at_places(mlp, places):
        some = mlp(states)
    first = [found[0] if isinstance(found, tuple) else found for found in (some, whole)]
    assert torch.equal(*first)


def test_a_module_that_gives_more_than_states_runs_twice_once():
    mlp, runs = Pair(4, 3), []
    handle = mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    inner = []
    plain = mlp.forward
    mlp.forward = lambda states: inner.append(len(states)) or plain(states)
    for _ in range(3):
        with at_places(mlp):
            mlp(torch.randn(2, 9, 4))
    handle.remove()
    assert (len(runs), len(inner)) == (3, 4)
