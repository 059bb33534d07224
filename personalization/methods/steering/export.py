"""Steering vectors as files for other tools.

`content` is one safetensors file that says in its header what is done with it: the operation, the hook point, the
layers, the strengths and the scale. `easysteer` is the layout that EasySteer, repeng and llama.cpp read, a GGUF file of
architecture `controlvector` for each user: one direction a layer, `direction.{layer}`, already as long as it is added.
llama.cpp adds none at layer 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from personalization.errors import UsageError
from personalization.methods.steering.moves import Move, SteeringVectors

HOOKS = {"block": "output of the decoder block", "mlp": "output of the block's MLP"}
OPERATIONS = {
    "additive": "h + norm * (alpha_personal * personal + alpha_general * general)",
    "projection": "p - alpha_general * <p, general> * general, p = h + alpha_personal * <h, personal> * personal",
}
TOKENS = {
    "all": "all of the prompt",
    "answer": "the answer's",
    "last": "the prompt's last one and the answer's",
}


def content(
    vectors: SteeringVectors, move: Move, users: Sequence[str], scope: str, found_by: Mapping[str, str]
) -> bytes:
    """The vectors as safetensors: `personal` [U, L, d], `general` [L, d], `norms` [L]; the rest in the header."""
    told = {
        "format": "chamtune steering vectors 1",
        "operation": OPERATIONS[move.kind],
        "hook_point": HOOKS[move.site],
        "tokens": TOKENS[scope],
        "layers": json.dumps(list(vectors.layers)),
        "alpha_personal": repr(move.alpha_personal),
        "alpha_general": repr(move.alpha_general),
        "users": json.dumps(list(users)),
        **found_by,
    }
    arrays = {"personal": vectors.personal, "general": vectors.general, "norms": vectors.norms}
    written: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=told)
    return written


def easysteer(vectors: SteeringVectors, move: Move, user: int) -> dict[str, NDArray[np.float32]]:
    """What is added for one user of an additive move behind blocks, by layer; UsageError for another operation."""
    if move.kind != "additive" or move.site != "block":
        raise UsageError(
            f"a {move.kind} at the {HOOKS[move.site]} is no vector that is added to what leaves a block; only additive "
            "steering of blocks can be written as GGUF"
        )
    added = move.alpha_personal * vectors.personal[user] + move.alpha_general * vectors.general
    whole = vectors.norms[:, None] * added
    return {f"direction.{layer}": whole[place].astype(np.float32) for place, layer in enumerate(vectors.layers)}


def write_gguf(path: Path, directions: Mapping[str, NDArray[np.float32]], model: str) -> None:
    """One user's directions as a control vector; `model`: the model's type, as a hint."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model)
    writer.add_uint32("controlvector.layer_count", len(directions))
    for name, direction in directions.items():
        writer.add_tensor(name, np.ascontiguousarray(direction))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
