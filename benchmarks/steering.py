"""What does a steering trial cost that starts at layer K of N, as a share of a full pass?

    python benchmarks/steering.py
    python benchmarks/steering.py --gpu    # only 200 questions of 50 users, a 3B shape in bfloat16

The 12-layer shape of benchmarks/scoring.py. For each K the block K is edited, once with the whole model and once from
the stored states, in turns; both give the same bits. `cost_over_ideal` is the ratio of times over (N - K) / N: at most
1.15 is wanted. Then 200 questions of 50 users in one call against a call for each user. The last line is JSON.
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
from personalization.methods.steering.steered_scorer import SteeredScorer

from personalization.backbones.causal import CausalBackbone
from personalization.methods.steering.moves import Edit, SteeringVectors

spec = importlib.util.spec_from_file_location("scoring", Path(__file__).with_name("scoring.py"))
scoring = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scoring)


def vectors_of(users: int, layers: int, width: int) -> SteeringVectors:
    random = np.random.default_rng(0)
    personal = random.normal(size=(users, layers, width)).astype(np.float32)
    personal /= np.linalg.norm(personal, axis=-1, keepdims=True)
    norms = np.ones(layers, dtype=np.float32)
    return SteeringVectors(tuple(f"u{i}" for i in range(users)), personal, personal[0], norms)


def user_by_user(model: torch.nn.Module, repeats: int) -> dict[str, float]:
    """Four questions of each of 50 users, behind their histories: all in one call, and a call for each user."""
    users = np.repeat(np.arange(50), 4)
    histories = scoring.texts(50, 60, seed=2)
    prompts = [f"{histories[user]} {text}" for user, text in zip(users, scoring.texts(200, 20), strict=True)]
    tokenizer = scoring.tokenizer_of([*scoring.texts(2000, 90, seed=1), *prompts], scoring.SHAPE["vocab_size"])
    backbone = CausalBackbone(model, tokenizer)
    labels = [f" {tag}" for tag in scoring.LAMP_2_TAGS]
    vectors, edit = vectors_of(50, backbone.depth, backbone.width), Edit((backbone.depth // 2,), alpha_personal=0.5)

    def table(rows: np.ndarray, folder: str) -> np.ndarray:
        scorer = SteeredScorer(backbone, [prompts[i] for i in rows], labels, Path(folder), "benchmark")
        return scorer.table(vectors, edit, users[rows], np.ones(len(rows)), resume=False).scores

    together, apart, difference = [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            a, whole = scoring.timed(lambda: table(np.arange(200), folder))
            b, single = scoring.timed(
                lambda: np.concatenate([table(np.flatnonzero(users == user), folder) for user in range(50)])
            )
            together.append(a)
            apart.append(b)
            difference = max(difference, float(np.abs(whole - single).max()))
    print(f"200 questions of 50 users: together {min(together):.2f} s, user by user {min(apart):.2f} s")
    times = statistics.median(y / x for x, y in zip(together, apart, strict=True))
    return {"times_user_by_user": round(times, 2), "max_abs_diff": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    if options.gpu:
        print(json.dumps(user_by_user(scoring.model_on_gpu(), 3)))
        return
    prompts = scoring.texts(options.n, 90)
    tokenizer = scoring.tokenizer_of([*scoring.texts(2000, 90, seed=1), *prompts], scoring.SHAPE["vocab_size"])
    backbone = CausalBackbone(scoring.model_of(scoring.SHAPE), tokenizer)
    labels = [f" {tag}" for tag in scoring.LAMP_2_TAGS]
    depth = scoring.SHAPE["num_hidden_layers"]
    vectors = vectors_of(8, depth, scoring.SHAPE["hidden_size"])
    users, gates = np.arange(options.n) % 8, np.ones(options.n)
    result: dict[str, dict[str, float]] = {"cost_over_ideal": {}, "share_of_full": {}, "stored_mb": {}}
    with tempfile.TemporaryDirectory() as folder:
        scorer = SteeredScorer(backbone, prompts, labels, Path(folder), "benchmark")
        for k in (depth // 2, 2 * depth // 3, 5 * depth // 6):
            edit = Edit((k,), alpha_personal=0.5)
            full, resumed = [], []
            for repeat in range(options.repeats + 1):
                a, whole = scoring.timed(lambda e=edit: scorer.table(vectors, e, users, gates, resume=False))
                b, above = scoring.timed(lambda e=edit: scorer.table(vectors, e, users, gates))
                assert (whole.scores == above.scores).all()
                if repeat:  # the first resumed run stores the states
                    full.append(a)
                    resumed.append(b)
            share = statistics.median(y / x for x, y in zip(full, resumed, strict=True))
            print(
                f"K = {k} of {depth}: full {statistics.median(full):.2f} s, above K {statistics.median(resumed):.2f} s"
            )
            result["cost_over_ideal"][str(k)] = round(share * depth / (depth - k), 3)
            result["share_of_full"][str(k)] = round(share, 3)
            result["stored_mb"][str(k)] = round(scorer.states_after(k).path.stat().st_size / 1e6, 1)
    print(json.dumps({**result, **user_by_user(backbone.model, 3)}))


if __name__ == "__main__":
    main()
