"""Steering vectors as files for other tools."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from personalization.errors import UsageError
from personalization.methods.steering.export import content, easysteer
from personalization.methods.steering.moves import EDITS, EditedTokens, Move, SteeringVectors, steered
from personalization.scoring.resume import SITES, captured_output
from tests.tiny import make_model

USERS = ["first to last", "new"]


@pytest.fixture
def vectors():
    random = np.random.default_rng(0)

    def unit(*shape):
        x = random.normal(size=shape)
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    return SteeringVectors((0, 1), unit(2, 2, 32), unit(2, 32), np.array([1.5, 0.5], dtype=np.float32))


def read(path, written):
    """(arrays, header) of a safetensors file with this content."""
    path.write_bytes(written)
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("scope", ["last", "all", "answer"])
def test_a_file_says_all_that_steering_with_it_needs(vectors, kind, site, scope, tmp_path):
    move = Move(kind, site, alpha_personal=0.1, alpha_general=-0.3)
    arrays, told = read(tmp_path / "v.safetensors", content(vectors, move, USERS, scope, {"model": "abc"}))
    for name in ("personal", "general", "norms"):
        assert (arrays[name] == getattr(vectors, name)).all()
    assert json.loads(told["layers"]) == [0, 1]
    assert json.loads(told["users"]) == USERS
    assert (float(told["alpha_personal"]), float(told["alpha_general"])) == (0.1, -0.3)
    assert told["model"] == "abc"
    assert told["operation"].startswith("h + norm" if kind == "additive" else "p - alpha_general")
    assert ("MLP" in told["hook_point"]) == (site == "mlp")
    assert ("all" in told["tokens"]) == (scope == "all")


def test_a_part_of_an_array_is_written_as_it_is(vectors, tmp_path):
    part = SteeringVectors((1,), vectors.personal[:, 1:], vectors.general[1:], vectors.norms[1:])
    arrays, _ = read(tmp_path / "v.safetensors", content(part, Move(), USERS, "last", {}))
    assert (arrays["personal"] == vectors.personal[:, 1:]).all()


@pytest.mark.parametrize("user", [0, 1])
def test_the_layout_of_easysteer_holds_what_is_added_at_each_layer(vectors, user):
    """A tool that adds `direction.l` to what leaves layer l moves states as we do."""
    move = Move(alpha_personal=0.7, alpha_general=-0.2)
    added = easysteer(vectors, move, user)
    assert list(added) == ["direction.0", "direction.1"]
    assert all(array.dtype == np.float32 and array.shape == (32,) for array in added.values())
    model, ids = make_model("llama"), torch.arange(5, 12)[None]
    layers = model.model.layers
    tokens = EditedTokens(7, np.zeros(7, int), np.arange(7), np.full(7, user), np.ones(7, dtype=np.float32))
    with torch.inference_mode():
        with steered(layers, vectors, move, tokens), captured_output(layers[1]) as ours:
            model(ids, use_cache=False)
        hooks = [
            layer.register_forward_hook(lambda _, __, out, n=n: out + torch.from_numpy(added[f"direction.{n}"]))
            for n, layer in enumerate(layers)
        ]
        with captured_output(layers[1]) as theirs:
            model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(ours[0], theirs[0], atol=1e-5)


def test_a_projection_is_no_vector(vectors):
    with pytest.raises(UsageError, match="only additive steering of blocks can be written as GGUF"):
        easysteer(vectors, Move("projection", alpha_personal=1.0), 0)
