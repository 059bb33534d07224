"""Space of the adapter objective: what is trained on the histories, and the retrieval's calibration on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import retrieval

SPACE: dict[str, BaseDistribution] = {
    "adapter": CategoricalDistribution(["none", "head", "lora"]),
    "blend": FloatDistribution(0.0, 1.0),
    "c": FloatDistribution(1e-4, 10.0, log=True),
    "depth": FloatDistribution(0.0, 1.0),
    "level": CategoricalDistribution(["unified", "cluster", "user"]),
    "groups": IntDistribution(2, 8),
    "cluster_by": CategoricalDistribution(["words", "labels", "embedding"]),
    "rank": CategoricalDistribution([2, 4, 8, 16]),
    "targets": CategoricalDistribution(["attention", "mlp", "all"]),
    "start": FloatDistribution(0.0, 0.95),
    "word_dropout": FloatDistribution(0.0, 0.3),
    "epochs": IntDistribution(1, 8),
    "lr": FloatDistribution(1e-4, 2e-2, log=True),
    "weight_decay": FloatDistribution(1e-4, 1.0, log=True),
    "dropout": FloatDistribution(0.0, 0.3),
    "margin": FloatDistribution(0.0, 1.0),
    "diversity": FloatDistribution(0.0, 1.0),
    "anchor": FloatDistribution(0.0, 1.0),
    "fit": CategoricalDistribution(["searched", "exact"]),
    **retrieval.SPACE,
}

LORA = ("level", "groups", "cluster_by", "rank", "targets", "start", "word_dropout", "epochs", "lr", "weight_decay",
        "dropout", "margin", "diversity", "anchor")  # fmt: skip
ONLY = {**retrieval.ONLY, **dict.fromkeys((*LORA, "depth", "adapter=lora"), "causal")}


@dataclass(frozen=True, slots=True)
class Params(retrieval.Params):
    """A retrieval's calibration over an adapter's scores, blended with the model's own. What has no effect is baseline.

    `fit`: exact takes beta, gamma and tau from the convex optimum of NLL on tune.
    """

    adapter: str
    blend: float
    c: float
    depth: float
    level: str
    groups: int
    cluster_by: str
    rank: int
    targets: str
    start: float
    word_dropout: float
    epochs: int
    lr: float
    weight_decay: float
    dropout: float
    margin: float
    diversity: float
    anchor: float
    fit: str


_NONE: dict[str, Any] = {
    "adapter": "none", "blend": 0.0, "c": 0.01, "depth": 0.0, "level": "unified", "groups": 4, "cluster_by": "words",
    "rank": 4, "targets": "all", "start": 0.5, "word_dropout": 0.0, "epochs": 4, "lr": 2e-3, "weight_decay": 0.01,
    "dropout": 0.0, "margin": 0.0, "diversity": 0.0, "anchor": 0.0, "fit": "searched",
}  # fmt: skip

BASELINE = Params(**_NONE, **asdict(retrieval.BASELINE))


def decode(raw: Mapping[str, Any]) -> Params:
    """Params from a trial's raw values."""
    values = {**{name: _NONE[name] for name in ONLY if name in _NONE}, **raw}
    if values["fit"] == "exact":
        values |= {"beta": 1.0, "gamma": 1.0, "tau": 1.0}
    if values["adapter"] == "none" or values["blend"] == 0:
        values |= {name: _NONE[name] for name in _NONE if name != "fit"}
    if values["adapter"] != "lora":
        values |= {name: _NONE[name] for name in LORA}
    if values["adapter"] != "head":
        values |= {name: _NONE[name] for name in ("c", "depth")}
    if values["level"] != "cluster":
        values |= {name: _NONE[name] for name in ("groups", "cluster_by")}
    if values["level"] == "unified":
        values["anchor"] = _NONE["anchor"]
    if values["adapter"] != "none":
        values["source"] = "batch"
    names = retrieval.Params.__dataclass_fields__
    inner = {name: values[name] for name in names if name in values}
    return Params(**{name: values[name] for name in _NONE}, **asdict(retrieval.decode(inner)))


def complexity(params: Params) -> float:
    """That of the retrieval, and the parts of the adapter: a head is one, LoRA two, groups three, users four."""
    size = {"none": 0, "head": 1, "lora": 2}[params.adapter] + {"unified": 0, "cluster": 1, "user": 2}[params.level]
    return retrieval.complexity(params) + size + (0 < params.blend < 1)
