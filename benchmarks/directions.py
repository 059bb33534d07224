"""What do the directions of steering cost, in tokens that the model runs and in seconds?

    python benchmarks/directions.py [--model demo] [--users 40] [--data lamp2_news]
    python benchmarks/directions.py --tiny     # a random two-layer Llama instead of the model

States for the directions of one question of each user, read in the three ways of `methods.steering.fronts`. Tokens are
counted where they enter the model, padding left out and in. `distinct_history_tokens` is every history that is read,
with its instruction, laid out once; `ratio`: of tokens_new to it. `old` is `others`, the earlier way, which reads
8 items of a history. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from personalization.backbones.causal import CausalBackbone, load_causal
from personalization.data.demo.world import make_world
from personalization.data.records import Dataset
from personalization.data.sources import read_source
from personalization.methods.steering.fronts import FRONTS, ROOM, segments
from personalization.methods.steering.learned import Directions, Reading
from personalization.scoring import packed

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@contextmanager
def counted() -> Iterator[list[tuple[int, int]]]:
    """(tokens, places with padding) of each batch that packed rows run."""
    seen: list[tuple[int, int]] = []
    run = packed.Packed._forward

    def forward(self: packed.Packed, layout: packed.Layout, *rest: object) -> torch.Tensor:
        seen.append((int((layout.branches >= 0).sum()), layout.ids.size))
        return run(self, layout, *rest)

    with mock.patch.object(packed.Packed, "_forward", forward):
        yield seen


def cost(backbone: CausalBackbone, dataset: Dataset, front: str) -> dict[str, float]:
    """Tokens and seconds of the states at half of the depth, and the items of which they were read."""

    def states(prompts: list[str], _owners: object, layers: tuple[int, ...], site: str) -> np.ndarray:
        place = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        return backbone.last_states(list(place), layers, site=site)[[place[prompt] for prompt in prompts]]

    room = backbone.room([" "], 0, ROOM)
    directions = Directions(
        dataset, Reading(backbone.depth, states, backbone.embeddings, backbone.lengths, room), front
    )
    with mock.patch.object(backbone.router, "_agrees", return_value=True), counted() as seen:
        started = time.perf_counter()
        pairs = directions.pairs("block", (backbone.depth // 2,))
        seconds = time.perf_counter() - started
    texts = [
        "".join(segments("answered", dataset.task, dataset.questions[row], recent[0]))
        for recent, row in directions.histories.items()
    ]
    return {
        "tokens": sum(tokens for tokens, _ in seen),
        "padded": sum(places for _, places in seen),
        "seconds": round(seconds, 2),
        "items": sum(len(recent[0]) for recent in directions.histories),
        "read": sum(len(found[0].neutral) for found in pairs.values()),
        "once": sum(backbone.lengths(texts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--data", type=Path, help="a folder that `chamtune run --data` takes; else the demo's world")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    backbone = load_causal(options.model, device="cpu" if options.tiny else "auto")
    if options.tiny:
        config = LlamaConfig(**TINY, vocab_size=len(backbone.tokenizer), max_position_embeddings=4096)
        backbone = CausalBackbone(LlamaForCausalLM(config), backbone.tokenizer)
    world = make_world(0, options.users, 1).dataset if options.data is None else read_source(options.data).splits().tune
    first = {q.user_id: q for q in reversed(world.questions)}
    dataset = Dataset(world.task, world.labels, tuple(first.values())[: options.users])
    found = {front: cost(backbone, dataset, front) for front in FRONTS}
    for front, figures in found.items():
        print(f"{front:9} {figures}")
    new, old = found["answered"], found["others"]
    print(
        json.dumps(
            {
                "tokens_old": old["tokens"],
                "tokens_new": new["tokens"],
                "distinct_history_tokens": new["once"],
                "ratio": round(new["tokens"] / new["once"], 3),
                "ratio_padded": round(new["padded"] / new["once"], 3),
                "seconds_old": old["seconds"],
                "seconds_new": new["seconds"],
            }
        )
    )


if __name__ == "__main__":
    main()
