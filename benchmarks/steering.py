"""What does a steering trial cost that starts at layer K of N, as a share of a full pass?

    python benchmarks/steering.py [--n 32] [--repeats 5] [--users 50]
    python benchmarks/steering.py --gpu    # only the questions of many users, a 3B shape in bfloat16

The 12-layer shape of benchmarks/scoring.py. For each K the block K is edited, once with the whole model and once from
the stored states, in turns; both give the same bits. `cost_over_ideal` is the ratio of times over (N - K) / N: at most
1.15 is wanted. Then four questions of each of 50 users in one call against a call for each user. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from personalization.backbones.causal import CausalBackbone
from personalization.methods.steering.edit import SteeringEdit
from personalization.methods.steering.moves import Move, SteeringVectors
from personalization.scoring.edits import Shelf

spec = importlib.util.spec_from_file_location("scoring", Path(__file__).with_name("scoring.py"))
scoring = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scoring)


def edit_at(layer: int, users: np.ndarray, backbone: CausalBackbone) -> SteeringEdit:
    """One block edited along a random direction of each user."""
    personal = np.random.default_rng(0).normal(size=(users.max() + 1, 1, backbone.width)).astype(np.float32)
    personal /= np.linalg.norm(personal, axis=-1, keepdims=True)
    vectors = SteeringVectors((layer,), personal, personal[0], np.ones(1, dtype=np.float32))
    return SteeringEdit(backbone.layers, vectors, Move(alpha_personal=0.5), users, np.ones(len(users)))


def user_by_user(model: torch.nn.Module, count: int, repeats: int) -> dict[str, float]:
    """Four questions of each of `count` users, behind their histories: all in one call, and a call for each user."""
    users = np.repeat(np.arange(count), 4)
    histories = scoring.texts(count, 60, seed=2)
    prompts = [f"{histories[user]} {text}" for user, text in zip(users, scoring.texts(len(users), 20), strict=True)]
    tokenizer = scoring.tokenizer_of([*scoring.texts(2000, 90, seed=1), *prompts], scoring.SHAPE["vocab_size"])
    backbone = CausalBackbone(model, tokenizer)
    labels = [f" {tag}" for tag in scoring.LAMP_2_TAGS]
    edit = edit_at(backbone.depth // 2, users, backbone)

    def table(rows: np.ndarray) -> np.ndarray:
        own = [edit.only(rows)]
        return backbone.fixed([prompts[i] for i in rows], labels, own).table(own)

    together, apart, difference = [], [], 0.0
    for _ in range(repeats):
        a, whole = scoring.timed(lambda: table(np.arange(len(users))))
        b, single = scoring.timed(
            lambda: np.concatenate([table(np.flatnonzero(users == user)) for user in range(count)])
        )
        together.append(a)
        apart.append(b)
        difference = max(difference, float(np.abs(whole - single).max()))
    print(f"{len(users)} questions of {count} users: together {min(together):.2f} s, user by user {min(apart):.2f} s")
    times = statistics.median(y / x for x, y in zip(together, apart, strict=True))
    return {"times_user_by_user": round(times, 2), "max_abs_diff": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    if options.gpu:
        print(json.dumps(user_by_user(scoring.model_on_gpu(), options.users, 3)))
        return
    prompts = scoring.texts(options.n, 90)
    tokenizer = scoring.tokenizer_of([*scoring.texts(2000, 90, seed=1), *prompts], scoring.SHAPE["vocab_size"])
    backbone = CausalBackbone(scoring.model_of(scoring.SHAPE), tokenizer)
    labels = [f" {tag}" for tag in scoring.LAMP_2_TAGS]
    depth = scoring.SHAPE["num_hidden_layers"]
    users = np.arange(options.n) % 8
    result: dict[str, dict[str, float]] = {"cost_over_ideal": {}, "share_of_full": {}, "stored_mb": {}}
    with tempfile.TemporaryDirectory() as folder:
        for k in (depth // 2, 2 * depth // 3, 5 * depth // 6):
            edits = [edit_at(k, users, backbone)]
            without_store = backbone.fixed(prompts, labels, edits)
            rows = backbone.fixed(prompts, labels, edits, Shelf(Path(folder), "benchmark"))
            full, resumed = [], []
            for repeat in range(options.repeats + 1):
                a, whole = scoring.timed(lambda: without_store.table(edits))  # noqa: B023
                b, above = scoring.timed(lambda: rows.table(edits))  # noqa: B023
                assert (whole == above).all()
                if repeat:  # the first resumed run stores the states
                    full.append(a)
                    resumed.append(b)
            share = statistics.median(y / x for x, y in zip(full, resumed, strict=True))
            print(
                f"K = {k} of {depth}: full {statistics.median(full):.2f} s, above K {statistics.median(resumed):.2f} s"
            )
            result["cost_over_ideal"][str(k)] = round(share * depth / (depth - k), 3)
            result["share_of_full"][str(k)] = round(share, 3)
            result["stored_mb"][str(k)] = round(rows.states(k).path.stat().st_size / 1e6, 1)
    print(json.dumps({**result, **user_by_user(backbone.model, options.users, min(3, options.repeats))}))


if __name__ == "__main__":
    main()
