"""Space of the adapter objective: what is trained on the histories, and the retrieval's calibration on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import retrieval

SPACE: dict[str, BaseDistribution] = {
    "adapter": CategoricalDistribution(["none", "head", "lora", "prefix"]),
    "blend": FloatDistribution(0.0, 1.0),
    "level": CategoricalDistribution(["unified", "cluster", "user"]),
    "groups": IntDistribution(2, 8),
    "cluster_by": CategoricalDistribution(["words", "labels", "embedding"]),
    "c": FloatDistribution(1e-4, 10.0, log=True),
    "c_own": FloatDistribution(1e-4, 10.0, log=True),
    "depth": FloatDistribution(0.0, 1.0),
    "rank": CategoricalDistribution([2, 4, 8, 16]),
    "alpha": CategoricalDistribution([0.5, 1.0, 2.0, 4.0]),
    "targets": CategoricalDistribution(["attention", "mlp", "all"]),
    "start": FloatDistribution(0.0, 0.95),
    "prefix_tokens": IntDistribution(1, 20),
    "word_dropout": FloatDistribution(0.0, 0.3),
    "history_dropout": FloatDistribution(0.0, 0.5),
    "history_swap": FloatDistribution(0.0, 0.5),
    "history_order": FloatDistribution(0.0, 1.0),
    "epochs": IntDistribution(1, 8),
    "lr": FloatDistribution(1e-4, 2e-2, log=True),
    "lr_ratio": FloatDistribution(1.0, 16.0, log=True),
    "schedule": CategoricalDistribution(["cosine", "plateau"]),
    "accumulate": CategoricalDistribution([1, 2, 4]),
    "weight_decay": FloatDistribution(1e-4, 1.0, log=True),
    "dropout": FloatDistribution(0.0, 0.3),
    "clip": FloatDistribution(0.1, 10.0, log=True),
    "patience": IntDistribution(1, 8),
    "warm_up": FloatDistribution(0.0, 0.3),
    "label": FloatDistribution(0.1, 1.0),
    "token": FloatDistribution(0.0, 1.0),
    "margin": FloatDistribution(0.0, 1.0),
    "match": FloatDistribution(0.0, 1.0),
    "diversity": FloatDistribution(0.0, 1.0),
    "anchor": FloatDistribution(0.0, 1.0),
    "fit": CategoricalDistribution(["searched", "exact"]),
    **retrieval.SPACE,
}

OF_TRAINING = (
    "rank", "alpha", "targets", "start", "prefix_tokens", "word_dropout", "history_dropout", "history_swap",
    "history_order", "epochs", "lr", "lr_ratio", "schedule", "accumulate", "weight_decay", "dropout", "clip",
    "patience", "warm_up", "label", "token", "margin", "match", "diversity", "anchor",
)  # fmt: skip
OF_ITEMS = ("history_dropout", "history_swap", "history_order")
OF_VIEWS = ("word_dropout", *OF_ITEMS)
SOME = tuple(range(1, 17))
ONLY = {**retrieval.ONLY, **dict.fromkeys((*OF_ITEMS, "depth", "prefix_tokens", "adapter=prefix", "token"), "causal")}
OWN: dict[str, dict[str, tuple[str | int, ...]]] = {
    **{name: {"adapter": ("lora", "prefix")} for name in OF_TRAINING},
    "prefix_tokens": {"adapter": ("prefix",)},
    "dropout": {"adapter": ("lora",)},
    "c": {"adapter": ("head",)},
    "c_own": {"adapter": ("head",), "level": ("cluster", "user")},
    "depth": {"adapter": ("head",)},
    "groups": {"level": ("cluster",)},
    "cluster_by": {"level": ("cluster",)},
    **{name: {"adapter": ("lora", "prefix"), "k": SOME} for name in OF_ITEMS},
}
READ_WITH: dict[str, dict[str, tuple[str | int, ...]]] = {
    **retrieval.READ_WITH,
    **OWN,
    **{name: {"fit": ("searched",)} for name in ("beta", "gamma", "tau")},
    "source": {"adapter": ("none",)},
}


@dataclass(frozen=True, slots=True)
class Params(retrieval.Params):
    """A retrieval's calibration over an adapter's scores, blended with the model's own. What has no effect is baseline.

    `fit`: exact takes beta, gamma and tau from the convex optimum of NLL on tune.
    """

    adapter: str
    blend: float
    level: str
    groups: int
    cluster_by: str
    c: float
    c_own: float
    depth: float
    rank: int
    alpha: float
    targets: str
    start: float
    prefix_tokens: int
    word_dropout: float
    history_dropout: float
    history_swap: float
    history_order: float
    epochs: int
    lr: float
    lr_ratio: float
    schedule: str
    accumulate: int
    weight_decay: float
    dropout: float
    clip: float
    patience: int
    warm_up: float
    label: float
    token: float
    margin: float
    match: float
    diversity: float
    anchor: float
    fit: str


_NONE: dict[str, Any] = {
    "adapter": "none", "blend": 0.0, "level": "unified", "groups": 4, "cluster_by": "words", "c": 0.01, "c_own": 0.01,
    "depth": 0.0, "rank": 4, "alpha": 2.0, "targets": "all", "start": 0.5, "prefix_tokens": 8, "word_dropout": 0.0,
    "history_dropout": 0.0, "history_swap": 0.0, "history_order": 0.0, "epochs": 4, "lr": 2e-3, "lr_ratio": 1.0,
    "schedule": "cosine", "accumulate": 1, "weight_decay": 0.01, "dropout": 0.0, "clip": 1.0, "patience": 3,
    "warm_up": 0.1, "label": 1.0, "token": 0.0, "margin": 0.0, "match": 0.0, "diversity": 0.0, "anchor": 0.0,
    "fit": "searched",
}  # fmt: skip

BASELINE = Params(**_NONE, **asdict(retrieval.BASELINE))


def decode(raw: Mapping[str, Any]) -> Params:
    """Params from a trial's raw values."""
    values = {**_NONE, **raw}
    if values["fit"] == "exact":
        values |= {"beta": 1.0, "gamma": 1.0, "tau": 1.0}
    if values["adapter"] == "none" or values["blend"] == 0:
        values |= {name: _NONE[name] for name in _NONE if name != "fit"}
    values |= {name: _NONE[name] for name in _idle(values)}
    if values["adapter"] != "none":
        values["source"] = "batch"
    names = retrieval.Params.__dataclass_fields__
    inner = {name: values[name] for name in names if name in values}
    return Params(**{name: values[name] for name in _NONE}, **asdict(retrieval.decode(inner)))


def _idle(values: Mapping[str, Any]) -> list[str]:
    """Parameters of the adapter that nothing reads beside the others."""
    idle = [name for name, needs in OWN.items() if any(values.get(other, 0) not in of for other, of in needs.items())]
    if values["epochs"] == 1:
        idle += OF_VIEWS
    if values["level"] == "unified" and values["adapter"] == "lora":
        idle.append("anchor")
    return idle


def complexity(params: Params) -> float:
    """That of the retrieval, and the adapter: a head is one, LoRA two, a prefix three; groups one, users two more."""
    size = {"none": 0, "head": 1, "lora": 2, "prefix": 3}[params.adapter] + {"unified": 0, "cluster": 1, "user": 2}[
        params.level
    ]
    return retrieval.complexity(params) + size + (0 < params.blend < 1)
