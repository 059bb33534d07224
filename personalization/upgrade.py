"""Deploy configs of format 5, one YAML file with one of five methods, as fitted chains.

What such a config says is what its chain answers with. Adapters and heads lie where the config says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.errors import DataError
from personalization.files import sha256_of
from personalization.methods.adapters.trained import Trained
from personalization.methods.adapters.user_heads import HeadPlan, Heads
from personalization.methods.history.clusters import Clusters
from personalization.methods.steering import learned as steering
from personalization.stages.calibration import Calibration, Learned, Numbers
from personalization.stages.chain import Fitted, saved_params
from personalization.tasks import Task, task

CALIBRATION = ("beta", "tau", "prior_mode", *Calibration.earlier)
PROMPT = ("template", "scale", "k", "ranking", "mix")
Stages = tuple[dict[str, Any], dict[str, Any]]
"""(stage -> parameters, stage -> what it learned)."""


def fitted_of_format_5(config: Mapping[str, Any]) -> Fitted:
    """The chain of a config; DataError where its method is not known, or a file of it is missing or changed."""
    method = config["method"]
    if method not in METHODS:
        raise DataError(f"a config of format 5 with method {method!r} is not known; known are {', '.join(METHODS)}")
    params, learned = METHODS[method](config)
    own = dict(config["params"])
    if method == "report_calibration":
        own |= {"formula": "report"}
    params["calibration"] = {key: own[key] for key in CALIBRATION if key in own}
    found = {name: saved_params(name, values) for name, values in params.items()}
    learned["calibration"] = _calibration(config, found["calibration"])
    return Fitted(found, learned)


def task_of_format_5(name: str) -> Task:
    """A task in the wording of that time: a space less behind history items, and LaMP-1's titles in front."""
    known = task(name)
    if name == "LaMP_1":
        history, prompt = {"before": "", "join": " , and ", "after": ". "}, "{{history}}{{input}}\nanswer:"
        return known.model_copy(update={"history": known.history.model_copy(update=history), "prompt": prompt})
    own = {"item": known.history.item.rstrip(), "join": " , and "}
    return known.model_copy(update={"history": known.history.model_copy(update=own)})


def _calibration(config: Mapping[str, Any], params: SimpleNamespace) -> Learned:
    priors = config["priors"]
    strengths = {name: getattr(params, name) for name in ("beta", "gamma", "tau")}
    plain = Numbers({source: _array(table) for source, table in priors["log_model"].items()}, **strengths)
    moved = plain
    if "steering" in config:
        bias = _array(config["steering"]["log_model"])
        moved = Numbers({**plain.bias, "batch": bias}, **strengths)
    if config.get("adapter") is not None:
        moved = Numbers({"batch": plain.bias["batch"]}, **strengths)
    without = config.get("without_adapter")
    if without is not None:
        plain = Numbers({"batch": _array(without["log_model"])}, **without["params"])
    probs = None if priors["global_probs"] is None else _array(priors["global_probs"])
    return Learned(plain, moved, probs, np.array(priors["global_counts"], dtype=np.int64))


def _array(values: Any) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def _prompt(config: Mapping[str, Any]) -> Stages:
    return {"prompt": {key: config["params"][key] for key in PROMPT}}, {"prompt": None}


def _steering(config: Mapping[str, Any]) -> Stages:
    names = steering.Settings.__dataclass_fields__
    params = {"steering": {name: config["params"][name] for name in names if name in config["params"]}}
    if "steering" not in config:
        return params, {"steering": None}
    listed = config["steering"]["learned"]
    arrays = {name: np.array(listed[name], dtype=np.float32) for name in ("pooled", "general", "norms")}
    found = steering.Learned(
        tuple(listed["edited"]), _clusters(listed["clusters"]), threshold=float(listed["threshold"]), **arrays
    )
    return params, {"steering": found}


def _adapter(config: Mapping[str, Any]) -> Stages:
    params, learned = _prompt(config)
    own, listed = config["params"], config.get("adapter")
    if listed is None:
        return params, learned
    if own["adapter"] == "head":
        names = ("level", "groups", "cluster_by", "c", "c_own", "depth")
        plan = HeadPlan(**{name: own[name] for name in names})
        params["head"] = {"head": "logistic", "blend": own["blend"], **{name: own[name] for name in names}}
        learned["head"] = _heads(plan, listed)
    else:
        params["adapter"] = {"adapter": own["adapter"], "blend": own["blend"], "level": own["level"]}
        learned["adapter"] = _trained(listed)
    return params, learned


def _clusters(listed: Mapping[str, Any] | None) -> Clusters | None:
    if listed is None:
        return None
    centres = np.array(listed["centres"], dtype=np.float32)
    return Clusters(listed["kind"], tuple(listed["terms"]), centres, float(listed["silhouette"]))


def _heads(plan: HeadPlan, listed: Mapping[str, Any]) -> Heads:
    import safetensors.numpy

    path = Path(listed["file"])
    if not path.is_file() or sha256_of(path) != listed["sha256"]:
        raise DataError(f"{path}: the head of this config is missing or changed; restore it or promote again")
    return Heads.of_arrays(plan, safetensors.numpy.load(path.read_bytes()), _clusters(listed["clusters"]))


def _trained(listed: Mapping[str, Any]) -> Trained:
    folder = Path(listed["folder"])
    if not folder.is_dir() or _content(folder, listed["count"]) != listed["sha256"]:
        raise DataError(f"{folder}: the adapters of this config are missing or changed; restore them or promote again")
    return Trained(
        folder=folder,
        clusters=_clusters(listed["clusters"]),
        below=None if listed["below"] is None else _trained(listed["below"]),
        idle=tuple(listed["idle"]),
        **{name: listed[name] for name in ("level", "first", "count", "groups", "prefix")},
    )


def _content(folder: Path, count: int) -> str:
    """SHA-256 over the adapters of all groups, as format 5 has it."""
    digest = hashlib.sha256()
    for group in range(count):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            path = folder / f"group-{group}" / name
            digest.update(f"{group} {name} {sha256_of(path) if path.exists() else 'missing'}\n".encode())
    return digest.hexdigest()


METHODS: dict[str, Callable[[Mapping[str, Any]], Stages]] = {
    **dict.fromkeys(("calibration", "report_calibration"), lambda _: ({}, {})),
    "retrieval": _prompt,
    "steering": _steering,
    "adapter": _adapter,
}
"""method of format 5 -> its stages below the calibration."""
