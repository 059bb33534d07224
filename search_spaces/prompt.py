"""Space of the prompt: items of the history in front of the question; how an encoder is asked for a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.conditions import Read, nonzero

SPACE: Mapping[str, BaseDistribution] = {
    "template": CategoricalDistribution(
        ["{label}", "{label} news", "this text is about {label}", "category: {label}", "a text tagged {label}"]
    ),
    "scale": FloatDistribution(5.0, 100.0, log=True),
    "k": IntDistribution(0, 16),
    "ranking": CategoricalDistribution(["similarity", "bm25", "mix", "recency"]),
    "mix": FloatDistribution(0.0, 1.0, step=0.25),
}
ON_REQUEST: Mapping[str, BaseDistribution] = {"wording": CategoricalDistribution(["own"])}
ONLY = {"template": "encoder", "scale": "encoder", "k": "causal", "ranking": "causal", "mix": "causal"}
OPEN = {"template": r"[^{}]*\{label\}[^{}]*", "wording": r"\S.*"}
MOST = {"mix": 1.0}
READ: Read = {"ranking": [{"k": nonzero}], "mix": [{"k": nonzero, "ranking": ("mix",)}]}


@dataclass(frozen=True, slots=True)
class Params:
    """`k` items by `ranking`, in a `wording` of the task; of an encoder `template`, a text with {label} in it, and
    `scale`, by which it multiplies similarities."""

    template: str = "{label}"
    scale: float = 20.0
    k: int = 0
    ranking: str = "recency"
    mix: float = 0.0
    wording: str = "own"


BASELINE = Params()


def complexity(params: Params) -> float:
    """Items in the prompt, and how many."""
    return (params.k > 0) + (params.ranking == "mix") + 0.01 * params.k
