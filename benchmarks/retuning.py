"""A deployment from serving to a changed world and back: does monitoring say so, and does tuning again help?

    python benchmarks/retuning.py [--users 60] [--trials 15] [--out FOLDER] [--keep FOLDER]

A chain (head, calibration) on the demo's model is studied on three times `--users` users, promoted and served by
`chamtune serve --texts`. Its clients are users whom no trial saw; each answer gets its label as feedback. Then the tags
change their meaning: labels of histories and answers are exchanged by a fixed permutation. After the answers to each
group of `--users` users `chamtune monitor` is asked; once three groups have come, as many as the first study had, it is
called with `--retune`, tunes again on what was logged since the drift, and the server takes the new generation over.
`unchanged`: what the first config says to the same users in the world as it was, which is what "back" would be.
At last somebody publishes the first config once more, and `chamtune monitor --baseline --rollback` brings back the one
that was better. Accuracy over time is drawn into `--out`; `--keep` holds home, deployment and log. The last line is
JSON.
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
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from personalization.data.demo.world import make_world
from personalization.data.lamp import write_dataset
from personalization.data.records import Dataset
from personalization.deployment import Deployment
from studies.verdict.deployments import publish

spec = importlib.util.spec_from_file_location("serving_http", Path(__file__).with_name("serving_http.py"))
serving_http = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serving_http)

LABEL_SEED = 7
TOGETHER = 20
"""Questions of a request."""
STUDIED, QUESTIONS = 3, 4
"""Groups of users that a study has, and questions of a user."""


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


def draw(out: Path, parts: list[tuple[str, list[float]]], unchanged: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4))
    values = np.array([value for _, part in parts for value in part])
    window = 50
    smooth = np.convolve(values, np.ones(window) / window, "valid")
    axes.plot(np.arange(window - 1, len(values)), smooth, color="#1f5fa8")
    at = 0
    for (name, part), was in zip(parts, unchanged, strict=True):
        axes.axvline(at, color="#999999", linewidth=0.8)
        axes.text(at + 4, 0.98, name, va="top", fontsize=8, transform=axes.get_xaxis_transform())
        axes.hlines(np.mean(part), at, at + len(part), color="#c0392b", linewidth=1.2)
        axes.hlines(was, at, at + len(part), color="#777777", linewidth=1.2, linestyle="--")
        at += len(part)
    axes.plot([], [], color="#c0392b", label="mean of the part")
    axes.plot([], [], color="#777777", linestyle="--", label="the first config on these users, had nothing changed")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93), fontsize=8)
    axes.set(xlabel="question", ylabel=f"accuracy, mean of {window}", ylim=(0, 0.8))
    figure.tight_layout()
    figure.savefig(out / "retuning.png", dpi=110)


def said(found: dict[str, Any]) -> dict[str, Any]:
    own = found["calibration"]
    return {
        "estimate": own["estimate"],
        "accuracy": own["accuracy"],
        "calibration": own["state"],
        "labelled": found["labelled"],
        "drift": [one["what"] for one in found["drift"]],
        "faults": found["faults"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, result = options.keep or Path(name), dict[str, Any](users=options.users, trials=options.trials)
        home, deploy = folder / "home", folder / "deploy"
        write_dataset(folder / "data", "old", make_world(0, STUDIED * options.users, QUESTIONS).dataset)
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
        result["first"] = promoted["reason"]
        shutil.copytree(deploy, folder / "earlier")
        port = serving_http.free_port()
        log = home / "serving" / "deploy"
        serve = [sys.executable, "-m", "cli", "serve", deploy, "--port", port, "--log", log, "--texts", "--home", home]
        with serving_http.Server(list(map(str, serve)), port):
            result |= Cycle(options, folder, port, log).run()
    print(json.dumps(result))


class Cycle:
    """What happens to one served deployment, group of users by group."""

    def __init__(self, options: argparse.Namespace, folder: Path, port: int, log: Path) -> None:
        self.options, self.folder, self.port, self.log = options, folder, port, log
        self.home, self.deploy = folder / "home", folder / "deploy"
        self.first = Deployment.load(folder / "earlier")
        self.parts: list[tuple[str, list[float]]] = []
        self.found: dict[str, Any] = {}

    def phase(self, name: str, seed: int, changed: bool = True) -> None:
        """One group of users asks, and what `chamtune monitor` says then."""
        world = make_world(seed, self.options.users, QUESTIONS).dataset
        self.parts.append((name, traffic(self.port, permuted(world) if changed else world, f"{seed}")))
        unchanged = self.first.predict(world.questions)
        right = [found.label == q.gold for found, q in zip(unchanged, world.questions, strict=True)]
        self.found[name] = {
            "accuracy": round(float(np.mean(self.parts[-1][1])), 3),
            "unchanged": round(float(np.mean(right)), 3),
            "monitor": said(command("monitor", self.log, "--home", self.home)[1]),
        }
        print(name, self.found[name], flush=True)

    def run(self) -> dict[str, Any]:
        """Before, the change, tuned again, the first config by mistake, rolled back."""
        self.phase("before", 11, changed=False)
        for number in range(STUDIED):
            self.phase(f"tags changed, {number + 1}", 12 + number)
        trials = ("--trials", self.options.trials)
        verdict = command("monitor", self.log, "--retune", *trials, "--home", self.home)[1]["retuned"]
        kept = ("why", "reason", "promoted", "generation", "study", "questions")
        self.found["retune"] = {key: verdict.get(key) for key in kept}
        print(self.found["retune"], flush=True)
        if verdict["promoted"]:
            until_generation(self.port, verdict["generation"])
            self.phase("tuned again", 21)
            shutil.copytree(self.deploy, self.folder / "tuned")
            self.mistake()
        draw(self.options.out, self.parts, [self.found[name]["unchanged"] for name, _ in self.parts])
        return self.found

    def mistake(self) -> None:
        """The first config is published once more, found to be worse than what stood, and rolled back."""
        left_out = ("generation", "chain", "folder", "files", "previous_generation", "previous_digest")
        config = {key: value for key, value in self.first.config.items() if key not in left_out}
        until_generation(self.port, publish(self.home, self.deploy, config, self.first.fitted))
        self.phase("the first config", 22)
        words = ("--baseline", self.folder / "tuned", "--rollback", "--home", self.home)
        report = command("monitor", self.log, *words)[1]
        self.found["rollback"] = {key: report[key] for key in ("comparison", "faults", "rolled_back")}
        print(self.found["rollback"], flush=True)
        if report["rolled_back"] is not None:
            until_generation(self.port, report["rolled_back"]["generation"])
            self.phase("rolled back", 23)


if __name__ == "__main__":
    main()
