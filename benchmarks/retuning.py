"""A deployment from serving to a changed world and back: does monitoring say so, and does tuning again help?

    python benchmarks/retuning.py [--users 100] [--trials 20] [--out FOLDER]

A chain (head, calibration) on the demo's model is studied, promoted and served by `chamtune serve --texts`. Its clients
are users whom no trial saw; each answer gets its label as feedback. Then the tags change their meaning: labels of
histories and answers are exchanged by a fixed permutation. `chamtune monitor` is asked before and after, `chamtune
retune` works on what was logged since, and the server takes the new generation over; `chamtune monitor --baseline` then
compares it with the config that it replaced. Accuracy over time is drawn into `--out`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from personalization.data.demo.world import make_world
from personalization.data.lamp import write_dataset
from personalization.data.records import Dataset
from personalization.deployment import read_config

spec = importlib.util.spec_from_file_location("serving_http", Path(__file__).with_name("serving_http.py"))
serving_http = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serving_http)

LABEL_SEED = 7
TOGETHER = 20
"""Questions of a request."""


def permuted(dataset: Dataset) -> Dataset:
    """Every label another one: of the answers, and of all histories."""
    order = np.random.default_rng(LABEL_SEED).permutation(len(dataset.labels))
    change = {label: dataset.labels[int(order[k])] for k, label in enumerate(dataset.labels)}
    asked = tuple(
        replace(
            q,
            gold=change[q.gold or ""],
            history=tuple(replace(item, label=change[item.label or ""]) for item in q.history),
        )
        for q in dataset.questions
    )
    return Dataset(dataset.task, dataset.labels, asked)


def post(port: int, path: str, body: Any) -> Any:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=300) as reply:
        return json.load(reply)


def traffic(port: int, dataset: Dataset, tag: str) -> list[float]:
    """Ask and label everything; whether each answer was right."""
    right = []
    for at in range(0, len(dataset), TOGETHER):
        some = dataset.questions[at : at + TOGETHER]
        asks = [
            {
                "text": q.text,
                "user": f"{tag} {q.user_id}",
                "history": [{"text": item.text, "label": item.label} for item in q.history],
            }
            for q in some
        ]
        answers = post(port, "/predict", {"questions": asks})["answers"]
        for q, found in zip(some, answers, strict=True):
            post(port, "/feedback", {"request": found["request"], "label": q.gold})
            right.append(float(found["label"] == q.gold))
    return right


def command(*words: Any) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "cli", *map(str, words), "--json"], capture_output=True, text=True, check=False
    )
    if not done.stdout.strip():
        raise RuntimeError(done.stderr)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def until_generation(port: int, generation: int) -> None:
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as reply:
            if json.load(reply)["generation"] == generation:
                return
        time.sleep(0.2)


def draw(out: Path, parts: list[tuple[str, list[float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4))
    values = np.array([value for _, part in parts for value in part])
    window = 50
    smooth = np.convolve(values, np.ones(window) / window, "valid")
    axes.plot(np.arange(window - 1, len(values)), smooth, color="#1f5fa8")
    at = 0
    for name, part in parts:
        axes.axvline(at, color="#999999", linewidth=0.8)
        axes.text(at + 4, 0.98, name, va="top", fontsize=8, transform=axes.get_xaxis_transform())
        axes.hlines(np.mean(part), at, at + len(part), color="#c0392b", linewidth=1.2)
        at += len(part)
    axes.set(xlabel="question", ylabel=f"accuracy, mean of {window}", ylim=(0, 0.8))
    figure.tight_layout()
    figure.savefig(out / "retuning.png", dpi=110)


def said(found: dict[str, Any]) -> dict[str, Any]:
    own = found["calibration"]
    return {
        "estimate": own["estimate"],
        "accuracy": own["accuracy"],
        "calibration": own["state"],
        "drift": [one["what"] for one in found["drift"]],
        "comparison": found["comparison"],
        "faults": found["faults"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, result = Path(name), dict[str, Any](users=options.users, trials=options.trials)
        home, deploy, log = folder / "home", folder / "deploy", folder / "log"
        write_dataset(folder / "data", "old", make_world(0, 3 * options.users, 4).dataset)
        spec = {
            "name": "first",
            "data": {"path": str(folder / "data")},
            "model": {"path": "demo"},
            "chain": ["head", "calibration"],
            "constraints": {"entropy": ">= 0.6", "top1_share": "<= 0.55"},
            "space": {"head.head": "logistic", "head.level": "unified"},
            "trials": options.trials,
            "tracking": "none",
        }
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
        command("run", folder / "spec.yaml", "--home", home)
        promoted = command("promote", "first", "--no-cold-start", "--out", deploy, "--home", home)[1]
        print(f"first: {promoted['reason']}", flush=True)
        shutil.copytree(deploy, folder / "earlier")
        result |= cycle(options, home, deploy, log, folder / "earlier")
    print(json.dumps(result))


def cycle(options: argparse.Namespace, home: Path, deploy: Path, log: Path, earlier: Path) -> dict[str, Any]:
    """Before, after the change, tuned again."""
    users, port = options.users, serving_http.free_port()
    worlds = [make_world(seed, users, 4).dataset for seed in (11, 12, 13, 14, 15)]
    new = [permuted(world) for world in worlds]
    parts: list[tuple[str, list[float]]] = []
    serve = [sys.executable, "-m", "cli", "serve", deploy, "--port", port, "--log", log, "--texts", "--home", home]
    found: dict[str, Any] = {}

    def phase(name: str, dataset: Dataset) -> None:
        parts.append((name, traffic(port, dataset, name)))
        print(f"{name}: accuracy {np.mean(parts[-1][1]):.3f}", flush=True)

    with serving_http.Server(list(map(str, serve)), port):
        phase("before", worlds[0])
        found["monitor_before"] = said(command("monitor", log, "--home", home)[1])
        changed_at = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
        phase("the tags change", new[1])
        phase("still", new[2])
        found["monitor_after"] = said(command("monitor", log, "--home", home)[1])
        print(found, flush=True)
        again = ["--data", log, "--since", changed_at, "--trials", options.trials, "--home", home]
        code, verdict = command("retune", deploy, *again)
        found["retune"] = {"code": code, "reason": verdict["reason"], "generation": verdict.get("generation")}
        print(found["retune"], flush=True)
        if code == 0:
            until_generation(port, verdict["generation"])
            phase("tuned again", new[3])
            code, report = command("monitor", log, "--baseline", earlier, "--home", home)
            found["against_the_earlier"] = report["comparison"]
            found["generation"] = read_config(deploy)["generation"]
    found["accuracy"] = {name: round(float(np.mean(part)), 3) for name, part in parts}
    draw(options.out, parts)
    return found


if __name__ == "__main__":
    main()
