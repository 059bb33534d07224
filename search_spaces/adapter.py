"""Space of the adapter: LoRA or a prefix, for whom, where in the model, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.conditions import Read, above_one, nonzero

SPACE: Mapping[str, BaseDistribution] = {
    "adapter": CategoricalDistribution(["none", "lora", "prefix"]),
    "blend": FloatDistribution(0.0, 1.0),
    "level": CategoricalDistribution(["unified", "cluster", "user"]),
    "groups": IntDistribution(2, 8),
    "cluster_by": CategoricalDistribution(["words", "labels", "embedding"]),
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
}
ON_REQUEST: Mapping[str, BaseDistribution] = {"paraphrase": FloatDistribution(0.0, 1.0)}
"""The model writes as many texts as there are items; only where a spec says so."""
OF_ITEMS = ("history_dropout", "history_swap", "history_order")
ONLY = dict.fromkeys((*OF_ITEMS, "prefix_tokens", "adapter=prefix", "token", "paraphrase"), "causal")
MOST = dict.fromkeys(("blend", "start", "word_dropout", *OF_ITEMS, "paraphrase", "dropout", "warm_up"), 1.0)
ON = {"adapter": ("lora", "prefix")}
READ: Read = {
    **{name: [ON] for name in SPACE if name != "adapter"},
    "groups": [{**ON, "level": ("cluster",)}],
    "cluster_by": [{**ON, "level": ("cluster",)}],
    "prefix_tokens": [{"adapter": ("prefix",)}],
    "dropout": [{"adapter": ("lora",)}],
    **{name: [{**ON, "epochs": above_one}] for name in ("word_dropout", "paraphrase")},
    **{name: [{**ON, "epochs": above_one, "prompt.k": nonzero}] for name in OF_ITEMS},
    "anchor": [{"adapter": ("prefix",)}, {"adapter": ("lora",), "level": ("cluster", "user")}],
}


@dataclass(frozen=True, slots=True)
class Params:
    """Adapters, `blend` their weight beside the model itself; the rest is `methods.adapters.user_adapters.Plan`."""

    adapter: str = "none"
    blend: float = 0.0
    level: str = "unified"
    groups: int = 4
    cluster_by: str = "words"
    rank: int = 4
    alpha: float = 2.0
    targets: str = "all"
    start: float = 0.5
    prefix_tokens: int = 8
    word_dropout: float = 0.0
    history_dropout: float = 0.0
    history_swap: float = 0.0
    history_order: float = 0.0
    paraphrase: float = 0.0
    epochs: int = 4
    lr: float = 2e-3
    lr_ratio: float = 1.0
    schedule: str = "cosine"
    accumulate: int = 1
    weight_decay: float = 0.01
    dropout: float = 0.0
    clip: float = 1.0
    patience: int = 3
    warm_up: float = 0.1
    label: float = 1.0
    token: float = 0.0
    margin: float = 0.0
    match: float = 0.0
    diversity: float = 0.0
    anchor: float = 0.0


BASELINE = Params()


def canonical(values: Mapping[str, object]) -> dict[str, object]:
    """Without weight there is no adapter."""
    return {**values, "adapter": "none"} if values["blend"] == 0 else dict(values)


def complexity(params: Params) -> float:
    """LoRA is two, a prefix three; of groups it is one more, of users two."""
    size = {"none": 0, "lora": 2, "prefix": 3}[params.adapter]
    return size + {"unified": 0, "cluster": 1, "user": 2}[params.level] + (0 < params.blend < 1)
