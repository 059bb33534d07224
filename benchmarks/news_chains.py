"""Which chain serves a language model on real news, and is what it gains personal? A study and a promotion a chain.

    python benchmarks/news_chains.py --data FOLDER --home DIR [--only TEXT ...] [--model smollm2] [--trials 1.0]
        [--seed 0]

FOLDER holds LaMP-2 files. Each chain is an ordinary study, tuned on authors of train and looked at once on the authors
of dev, beside the untuned model: gains by question and by author with intervals, general and personal parts, cost. Each
keeps its looks in a storage of its own, so that all are tested at one level; p-values are corrected for their number at
the end (Holm). Scores, states and adapters are shared in `--home`, so that seconds are those of this order. A chain
called "control" is the steering before it with directions that are not the user's, one called "mean" answers the mean
probability of chains before it, as they were promoted. `--trials`: a share of each study's trials. A chain that was
measured in this home is not measured again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import optuna
from demo_steering import at_random, controlled, of_others

from search_spaces import ChainParams
from search_spaces.route import arms_of
from studies.runner import run_study
from studies.spec import parse_spec
from studies.study import OpenStudy, open_study
from studies.verdict.promotion import promote
from tracking.significance import holm, paired

RETRIEVER = {"retriever": "minilm"}
TASTE = {"calibration.prior_mode": ["similar", "user"]}
SOLVED = {**TASTE, "calibration.fit": "exact"}
SHARED = {
    **TASTE,
    "calibration.reach": {"low": 0.05, "high": 4.0},
    "calibration.floor": {"low": 0.2, "high": 0.95},
    "calibration.near": {"low": 0.02, "high": 1.0, "log": True},
    "calibration.kin": {"low": 0.0, "high": 8.0},
}
ITEMS = {"prompt.k": 4, "prompt.ranking": "similarity"}
MOVED = {
    "steering.direction": ["mean_difference", "preference"],
    "steering.alpha_personal": {"low": 0.05, "high": 1.0},
    "steering.alpha_general": 0.0,
    "steering.edit": "additive",
    "steering.site": "block",
    "steering.scope": ["last", "answer"],
    "steering.place": "start",
    "steering.start": [0.5, 0.8],
    "steering.count": 1,
    "steering.groups": 1,
    "steering.gate": "none",
}
HEAD = {
    "head.head": "logistic",
    "head.level": ["unified", "user"],
    "head.c": [0.001, 0.003, 0.01, 0.03],
    "head.c_own": [0.001, 0.01, 0.1],
    "head.depth": [0.5, 0.8, 1.0],
}
LORA = {
    "adapter.adapter": "lora",
    "adapter.blend": 1.0,
    "adapter.level": "unified",
    "adapter.rank": 8,
    "adapter.alpha": 2.0,
    "adapter.targets": "all",
    "adapter.start": 0.67,
    "adapter.epochs": 2,
    "adapter.lr": 1e-3,
    "adapter.lr_ratio": 1.0,
    "adapter.schedule": "cosine",
    "adapter.accumulate": 1,
    "adapter.clip": 1.0,
    "adapter.patience": 3,
    "adapter.warm_up": 0.1,
    "adapter.label": 1.0,
    "adapter.weight_decay": 0.01,
    **{f"adapter.{name}": 0.0 for name in ("word_dropout", "token", "margin", "match", "diversity", "dropout")},
}
GROUPS = {
    **LORA,
    "adapter.level": "cluster",
    "adapter.groups": 3,
    "adapter.cluster_by": "labels",
    "adapter.anchor": 0.01,
}
MEAN = {"route.answer": "mean"}
Row = tuple[dict[str, Any], int, dict[str, Any]]
CHAINS: dict[str, Row] = {
    "calibration": ({"calibration.prior_mode": ["user", "global"]}, 100, {}),
    "chat, calibration": ({"calibration.prior_mode": ["user", "global"]}, 100, {"chat": True}),
    "similar items": ({"calibration.prior_mode": "similar"}, 150, RETRIEVER),
    "others' items": (SHARED, 150, RETRIEVER),
    "4 items in the prompt": ({**ITEMS, **TASTE}, 100, RETRIEVER),
    "4 items in the prompt, others' items": ({**ITEMS, **SHARED}, 150, RETRIEVER),
    "steering": ({**MOVED, **SOLVED, "steering.centred": False}, 10, RETRIEVER),
    "steering, control": ({}, 0, {}),
    "steering, centred": ({**MOVED, **SOLVED, "steering.centred": True}, 10, RETRIEVER),
    "steering, centred, control": ({}, 0, {}),
    "steering, centred, others' items": ({**MOVED, **SHARED, "steering.centred": True}, 20, RETRIEVER),
    "head": ({**HEAD, **SOLVED}, 40, RETRIEVER),
    "head, others' items": ({**HEAD, **SHARED}, 100, RETRIEVER),
    "LoRA of all, bias alone": ({**LORA, "calibration.prior_mode": "global"}, 60, RETRIEVER),
    "LoRA of all": ({**LORA, **TASTE}, 100, RETRIEVER),
    "LoRA of all, others' items": ({**LORA, **SHARED}, 150, RETRIEVER),
    "LoRA of all, head, others' items": ({**LORA, **HEAD, **SHARED}, 100, RETRIEVER),
    "LoRA of all, steering, others' items": (
        {**LORA, **MOVED, **SHARED, "steering.centred": True, "steering.start": 0.8},
        20,
        RETRIEVER,
    ),
    "LoRA of groups, others' items": ({**GROUPS, **SHARED}, 150, RETRIEVER),
    "mean of two": ({"route.arms": ["LoRA of all", "others' items"], **MEAN}, 1, RETRIEVER),
    "mean of three": ({"route.arms": ["LoRA of all", "others' items", "head"], **MEAN}, 1, RETRIEVER),
}
"""name -> (space by full name, trials, more of the model)."""
ORDER = ("prompt", "adapter", "steering", "head", "calibration", "route")


def opened(name: str, options: argparse.Namespace) -> OpenStudy:
    """The study of a chain, opened."""
    space, trials, model = CHAINS[name]
    if "route.arms" in space:
        space = {**space, "route.arms": arms_of([promoted(arm, options)[1] for arm in space["route.arms"]])}
    spec = {
        "name": "".join(letter if letter.isalnum() else "-" for letter in name).lower() + of_seed(options),
        "data": {"path": options.data, "split": "files", "shares": {"tune": 0.6, "select": 0.2, "confirm": 0.2}},
        "model": {"path": options.model, **model},
        "chain": [stage for stage in ORDER if any(key.startswith(f"{stage}.") for key in space)],
        "space": space,
        "optimize": {"accuracy": "maximize"},
        "trials": max(1, round(trials * options.trials)),
        "warm_start": True,
        "seed": options.seed,
        "tracking": "none",
    }
    storage = options.home / f"{spec['name']}.db"
    return open_study(parse_spec({**spec, "storage": f"sqlite:///{storage}"}, "benchmark"), options.home)


def promoted(name: str, options: argparse.Namespace) -> tuple[OpenStudy, ChainParams]:
    """The study of a chain that was measured, and what it promoted."""
    study = opened(name, options)
    return study, study.rooms.of_flat(json.loads(result_file(name, options).read_text())["params"])


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A chain's study, and what dev says of what it chose."""
    started = time.perf_counter()
    study = opened(name, options)
    run_study(study.spec, options.home)
    ran, study = time.perf_counter() - started, opened(name, options)
    result = promote(study, options.home / "deploy" / study.spec.name, with_cold_start=False)
    row: dict[str, Any] = {"run_s": round(ran), "promote_s": round(time.perf_counter() - started - ran)}
    found = result["confirm"]
    if found is None:
        return {**row, "reason": result["reason"]}
    row |= {
        "params": result["params"],
        "tune": next(one["accuracy"] for one in result["shortlist"] if one["trial"] == result["trial"]),
        "baseline": found["baseline_metrics"]["accuracy"],
        "dev": found["metrics"]["accuracy"],
        "p": found["parts"]["by_question"]["gain"]["p_value"],
        "cost_ms": found["cost"]["cost_ms"],
        "training_s": found["cost"]["training_s"],
    }
    for weight in ("by_question", "by_user"):
        for part, test in found["parts"][weight].items():
            row[f"{part}_{weight}"] = [round(test["delta"], 4), *(round(end, 4) for end in test["interval"])]
    return row


def control(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The steering of this name, promoted before, with random directions and with those of other users."""
    study, params = promoted(name, options)
    objective = study.objective
    real = objective.evaluate(params.changed(fit="exact"), "confirm")
    row: dict[str, Any] = {"dev": real.metrics["accuracy"]}
    for what, change in (("random", at_random), ("of others", of_others)):
        found = controlled(study, params, change)
        test = paired(found.correct, real)
        row[what] = {"dev": found.metrics["accuracy"], "real over it": test["delta"], "ci95": test["ci95"]}
    return row


def of_seed(options: argparse.Namespace) -> str:
    """What tells studies and rows of another seed of the searches from the first one's."""
    return f"-{options.seed}" if options.seed else ""


def result_file(name: str, options: argparse.Namespace) -> Path:
    return Path(options.home / "rows" / f"{name}{of_seed(options)}.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", nargs="+", default=list(CHAINS), choices=list(CHAINS), metavar="CHAIN")
    parser.add_argument("--trials", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the searches")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (options.home / "rows").mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    for name in options.only:
        file = result_file(name, options)
        if not file.exists():
            steered = name.removesuffix(", control")
            row = measured(name, options) if steered == name else control(steered, options)
            file.write_text(json.dumps(row))
        rows[name] = json.loads(file.read_text())
        shown = {key: value for key, value in rows[name].items() if key != "params"}
        print(name, json.dumps(shown), flush=True)
    tested = [name for name, row in rows.items() if "p" in row]
    for name, p in zip(tested, holm([rows[name]["p"] for name in tested]), strict=True):
        rows[name]["p_corrected"] = p
    print(json.dumps({"model": options.model, "rows": rows}))


if __name__ == "__main__":
    main()
