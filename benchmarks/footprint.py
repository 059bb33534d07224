"""Does a large study hold what it said that it would? The last line is JSON.

    python benchmarks/footprint.py [--users 2000] [--per-user 5] [--items 100] [--chains calibration prompt ...]

A world of so many users, with so many items each, a random two-layer model, and a study of a few trials for each chain,
in a process and a home of its own. `said`: bytes that the study printed before it started; `peak` and `on_disk`: what
it took (resident memory, and the home afterwards).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from personalization.backbones.location import locate_model
from personalization.data.demo.world import INSTRUCTION, TAGS, draw_item, draw_movie, draw_user
from personalization.data.lamp import write_dataset
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.tasks import task

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TRAINED = {"adapter": "lora", "blend": 1.0, "epochs": 1, "start": 0.5}
CHAINS: dict[str, dict[str, Any]] = {
    "calibration": {},
    "prompt": {"k": [4, 8]},
    "steering": {"alpha_personal": [0.5, 1.0]},
    "head": {"head": "logistic", "level": ["unified", "user"]},
    "adapter": {**TRAINED, "level": "unified", "rank": [2, 4]},
    "adapters of users": {**TRAINED, "level": "user", "rank": [2, 4]},
}
"""name -> space of its study, whose chain is the stage of that name and a calibration."""
SAID = re.compile(r"holds up to ([\d.]+) ([kMGT]?B) on disk and ([\d.]+) ([kMGT]?B) in memory")
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def world(users: int, per_user: int, items: int) -> Dataset:
    """The planted world with histories of one length."""
    rng, questions = np.random.default_rng(0), []
    for number in range(users):
        user = draw_user(rng, f"user-{number:05d}")
        history = []
        for past in range(items):
            _, text, tag = draw_item(rng, user)
            history.append(HistoryItem(f"{number}-{past}", text, tag, datetime(2015, 1, 1) + timedelta(days=past)))
        for asked in range(per_user):
            _, text, tag = draw_movie(rng, user)
            questions.append(Question(f"{number:05d}{asked:02d}", user.id, INSTRUCTION + text, tuple(history), tag))
    return Dataset(task("LaMP_2"), TAGS, tuple(questions))


def written(folder: Path, users: int, per_user: int, items: int) -> None:
    """The world as a folder of LaMP files."""
    write_dataset(folder, "large", world(users, per_user, items))


def model_in(folder: Path) -> str:
    """A tiny random Llama with the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(locate_model("demo"))
    config = LlamaConfig(**SHAPE, vocab_size=len(tokenizer), max_position_embeddings=4096)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def taken(spec: Path, home: Path) -> dict[str, float]:
    """What a study said and took, in bytes, and its seconds."""
    command = [sys.executable, "-m", "cli", "run", str(spec), "--home", str(home)]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
    said = SAID.search(text)
    found = {
        "peak": usage.ru_maxrss * 1024,
        "on_disk": sum(path.stat().st_size for path in home.rglob("*") if path.is_file()),
        "seconds": round(time.monotonic() - started),
    }
    if said:
        disk, disk_unit, memory, memory_unit = said.groups()
        found |= {"said_disk": float(disk) * UNITS[disk_unit], "said_memory": float(memory) * UNITS[memory_unit]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--per-user", type=int, default=5)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--chains", nargs="+", default=list(CHAINS), choices=list(CHAINS))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:  # a study counts what its parent has held as its own
        beside.submit(written, folder / "data", options.users, options.per_user, options.items).result()
    model = model_in(folder / "model")
    found = {}
    for name in options.chains:
        stage = "adapter" if name.startswith("adapter") else name
        spec = {
            "name": name.replace(" ", "-"), "data": {"path": str(folder / "data")},
            "model": {"path": model, "device": "cpu"},
            "chain": ["calibration"] if name == "calibration" else [stage, "calibration"], "space": CHAINS[name],
            "sampler": "random", "trials": 4, "optimize": {"nll": "minimize"}, "tracking": "none",
        }  # fmt: skip
        path = folder / f"{spec['name']}.yaml"
        path.write_text(yaml.safe_dump(spec))
        found[name] = taken(path, folder / f"home-{spec['name']}")
        print(name, found[name], flush=True)
    sizes = {"users": options.users, "questions": options.users * options.per_user, "items": options.items}
    print(json.dumps({**sizes, "chains": found}))


if __name__ == "__main__":
    main()
