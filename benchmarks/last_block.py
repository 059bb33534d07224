"""What does it save to run the last block only where a label is read, and do the scores agree?

    python benchmarks/last_block.py [--n 32] [--repeats 5]

The 12-layer shape of benchmarks/scoring.py. A full pass, a pass from stored states above layer 7 (as a steering trial
or an adapter of the upper third has it), and the same forward and backward with a LoRA there; each in turns with the
whole block everywhere. `share`: the median time over that of everywhere; `max_abs_diff` of scores or gradients. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from personalization.backbones.causal import CausalBackbone
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.lora import GroupedLora, LoraShape, adapted_modules
from personalization.scoring import packed
from personalization.scoring.edits import Shelf

spec = importlib.util.spec_from_file_location("scoring", Path(__file__).with_name("scoring.py"))
scoring = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scoring)

LABELS = [f" {tag}" for tag in scoring.LAMP_2_TAGS]
FIRST = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    prompts = scoring.texts(options.n, 90)
    tokenizer = scoring.tokenizer_of([*scoring.texts(2000, 90, seed=1), *prompts], scoring.SHAPE["vocab_size"])
    backbone = CausalBackbone(scoring.model_of(scoring.SHAPE), tokenizer)
    lora = GroupedLora(
        backbone.model, LoraShape(adapted_modules(backbone.model, backbone.layers[FIRST:], "all"), 8, 2.0, 1)
    )
    edit = AdapterEdit(lora, np.zeros(options.n, dtype=np.int64), [""] * options.n, FIRST - 1, content="benchmark")
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        above = backbone.fixed(prompts, LABELS, [edit], Shelf(Path(folder), "benchmark"))

        def learned() -> np.ndarray:
            for number in range(above.batches):
                above.scores(number, [edit])[:, 0].sum().backward()
            grads = [parameter.grad.flatten() for parameter in lora.parameters]
            for parameter in lora.parameters:
                parameter.grad = None
            return torch.cat(grads).numpy()

        runs: dict[str, Callable[[], np.ndarray]] = {
            "full pass": backbone.fixed(prompts, LABELS, ()).table,
            f"above layer {FIRST - 1}": lambda: above.table([edit]),
            "forward and backward": learned,
        }
        for name, run in runs.items():
            run()  # stores the states
            pairs = []
            for _ in range(options.repeats):
                here, found = scoring.timed(run)
                with mock.patch.object(packed, "only_read", return_value=nullcontext()):
                    everywhere, reference = scoring.timed(run)
                pairs.append((here, everywhere))
            share = statistics.median(a / b for a, b in pairs)
            result[name] = {"share": round(share, 3), "max_abs_diff": float(np.abs(found - reference).max())}
            print(f"{name}: {result[name]}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
