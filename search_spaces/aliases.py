"""Objectives of versions before chains, as chains: their names are kept, so that their studies go on.

An old name may stand for parameters of several stages. Ranges that differ from today's are kept, too: Optuna holds a
study to the choices that it began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search_spaces import ChainSpace, Name, space_of

CALIBRATION = ("beta", "gamma", "kappa", "tau", "prior_mode", "source")
OLD_PRIORS = CategoricalDistribution(["user", "global", "uniform"])
BOTH = ("adapter", "head")
RETRIEVAL: dict[str, tuple[str, ...]] = {
    "template": ("prompt.template",),
    "scale": ("prompt.scale",),
    "k": ("prompt.k",),
    "ranking": ("prompt.ranking", "calibration.ranking"),
    "mix": ("prompt.mix", "calibration.mix"),
    "width": ("calibration.width",),
    "half_life": ("calibration.half_life",),
}
STEERING = (
    "direction", "general", "shrink", "groups", "edit", "site", "scope", "alpha_personal", "alpha_general", "place",
    "start", "count", "gate", "open_share",
)  # fmt: skip
TRAINING = (
    "rank", "alpha", "targets", "start", "prefix_tokens", "word_dropout", "history_dropout", "history_swap",
    "history_order", "epochs", "lr", "lr_ratio", "schedule", "accumulate", "weight_decay", "dropout", "clip",
    "patience", "warm_up", "label", "token", "margin", "match", "diversity", "anchor",
)  # fmt: skip


class Alias(NamedTuple):
    """A chain, its old names, and what differs."""

    chain: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    distributions: Mapping[str, BaseDistribution] = {}
    fixed: Mapping[str, Any] = {}


def _of(stage: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {name: (f"{stage}.{name}",) for name in names}


ALIASES: dict[str, Alias] = {
    "calibration": Alias(("calibration",), _of("calibration", CALIBRATION), {"prior_mode": OLD_PRIORS}),
    "report_calibration": Alias(
        ("calibration",),
        _of("calibration", ("beta", "tau", "alpha", "prior_mode")),
        {"tau": FloatDistribution(1.0, 5.0), "prior_mode": CategoricalDistribution(["user", "global"])},
        {"calibration.formula": "report"},
    ),
    "steering": Alias(
        ("steering", "calibration"),
        {**_of("steering", STEERING), **_of("calibration", ("fit", *CALIBRATION))},
        {"prior_mode": OLD_PRIORS},
    ),
    "retrieval": Alias(("prompt", "calibration"), {**RETRIEVAL, **_of("calibration", CALIBRATION)}),
    "adapter": Alias(
        ("prompt", "adapter", "head", "calibration"),
        {
            "adapter": ("adapter.adapter", "head.head"),
            **{name: tuple(f"{s}.{name}" for s in BOTH) for name in ("blend", "level", "groups", "cluster_by")},
            **_of("head", ("c", "c_own", "depth")),
            **_of("adapter", TRAINING),
            **_of("calibration", ("fit",)),
            **RETRIEVAL,
            **_of("calibration", CALIBRATION),
        },
        {"adapter": CategoricalDistribution(["none", "head", "lora", "prefix"])},
    ),
}
"""objective -> chain."""

MEANING = {
    "adapter.adapter": lambda value: value if value in ("lora", "prefix") else "none",
    "head.head": lambda value: "logistic" if value == "head" else "none",
}
"""What the old choice of an adapter means for each of two stages."""


def alias_space(objective: str) -> ChainSpace:
    """The space of an old objective."""
    alias = ALIASES[objective]
    names = {}
    for name, targets in alias.names.items():
        stage, _, own = targets[0].partition(".")
        distribution = alias.distributions.get(name, space_of(stage).SPACE[own])
        names[name] = Name(targets, distribution, MEANING if name == "adapter" else {})
    return ChainSpace(alias.chain, names, alias.fixed)
