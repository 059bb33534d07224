"""Chains for tests: every stage at settings that do something, on a world whose histories grow."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from personalization.backbones.cached import CachedScorer
from personalization.data.known import known_items
from personalization.data.records import Dataset
from personalization.stages import STAGES, stage
from personalization.stages.chain import Fitted, answer, fit
from personalization.stages.work import Tools, begin
from search_spaces import ChainParams, chain_space
from search_spaces.route import arms_of
from tests.tiny import short_world

TRAINED = {"adapter.blend": 1.0, "adapter.rank": 2, "adapter.epochs": 1, "adapter.start": 0.5, "adapter.lr": 0.02}
SHARED = {"calibration.reach": 1.0, "calibration.floor": 0.1, "calibration.near": 0.3, "calibration.kin": 2.0}
OWN = {"calibration.gamma": 0.8, "calibration.kappa": 2.0}
ACTIVE: dict[str, list[dict[str, Any]]] = {
    "prompt": [{"prompt.k": 2, "prompt.ranking": "bm25"}, {"prompt.k": 3, "prompt.ranking": "recency"}],
    "adapter": [
        {"adapter.adapter": "lora", **TRAINED},
        {"adapter.adapter": "lora", **TRAINED, "adapter.level": "cluster", "adapter.groups": 2},
        {"adapter.adapter": "lora", **TRAINED, "adapter.level": "user", "adapter.blend": 0.6},
        {"adapter.adapter": "lora", **TRAINED, "adapter.epochs": 2, "adapter.paraphrase": 0.6},
        {"adapter.adapter": "prefix", **TRAINED, "adapter.level": "cluster", "adapter.groups": 2},
    ],
    "steering": [
        {"steering.front": "answered", "steering.alpha_personal": 1.5, "steering.start": 0.5},
        {"steering.alpha_personal": 1.0, "steering.gate": "cosine", "steering.open_share": 0.5, "steering.groups": 2},
        {"steering.front": "answered", "steering.centred": True, "steering.alpha_personal": 1.5, "steering.groups": 2},
        {"steering.front": "stated", "steering.scope": "answer", "steering.alpha_personal": 2.0},
        {"steering.alpha_general": 0.7, "steering.site": "mlp", "steering.scope": "all", "steering.edit": "projection"},
    ],
    "head": [
        {"head.head": "logistic", "head.blend": 0.5, "head.level": "user"},
        {"head.head": "logistic", "head.blend": 1.0, "head.level": "cluster", "head.groups": 2, "head.depth": 0.5},
    ],
    "calibration": [
        {"calibration.beta": 0.8, "calibration.gamma": 0.9, "calibration.prior_mode": "user", "calibration.kappa": 3.0},
        {"calibration.fit": "exact", "calibration.prior_mode": "similar", "calibration.ranking": "bm25"},
        {"calibration.formula": "report", "calibration.beta": 0.5, "calibration.prior_mode": "user"},
        {"calibration.gamma": 1.2, "calibration.prior_mode": "user", "calibration.kappa": 2.0, **SHARED},
        {**OWN, "calibration.beta": 0.5, "calibration.prior_mode": "user", "calibration.per_user": "all"},
    ],
}
"""stage -> settings by full name."""


def params_of(chain: tuple[str, ...], *chosen: dict[str, Any]) -> ChainParams:
    """The parameters of a chain with these settings."""
    return chain_space(chain).of_full({name: value for some in chosen for name, value in some.items()})


ACTIVE["route"] = [
    {
        "route.arms": arms_of(
            [
                params_of(("calibration",), ACTIVE["calibration"][0]),
                params_of(("prompt", "calibration"), ACTIVE["prompt"][0], ACTIVE["calibration"][0]),
                params_of(("steering", "calibration"), ACTIVE["steering"][0], ACTIVE["calibration"][1]),
            ]
        ),
        "route.penalty": 1.0,
    }
]
ACTIVE["route"].append({"route.arms": ACTIVE["route"][0]["route.arms"], "route.answer": "mean"})


def singles() -> list[ChainParams]:
    """Every stage alone under a calibration, at each of its settings."""
    plain = ACTIVE["calibration"][0]
    found = []
    for name in STAGES:
        for settings in ACTIVE.get(name, [{}]):
            chain = (name,) if stage(name).alone else tuple(dict.fromkeys((name, "calibration")))
            found.append(params_of(chain, *([plain] if len(chain) > 1 else []), settings))
    return found


def combinations(size: int) -> list[ChainParams]:
    """Stages together, each at its first settings, under a calibration that is solved."""
    below = [name for name in STAGES if name != "calibration" and not stage(name).alone]
    exact = ACTIVE["calibration"][1]
    return [
        params_of((*names, "calibration"), exact, *(ACTIVE.get(name, [{}])[0] for name in names))
        for names in itertools.combinations(below, size)
    ]


def encoded() -> list[ChainParams]:
    """Chains of a sentence encoder: each of its stages alone, and all of them."""
    similar = {**ACTIVE["calibration"][1], "calibration.ranking": "similarity", "calibration.width": 0.2}
    texts = {"prompt.template": "category: {label}", "prompt.scale": 35.0}
    adapter, head = ACTIVE["adapter"][2], {**ACTIVE["head"][0], "head.depth": 0.0}
    return [
        params_of(("calibration",), similar),
        params_of(("calibration",), similar, SHARED),
        params_of(("prompt", "calibration"), similar, texts),
        params_of(("adapter", "calibration"), similar, adapter),
        params_of(("head", "calibration"), similar, head),
        params_of(("prompt", "adapter", "head", "calibration"), similar, texts, adapter, head),
    ]


def retrieved() -> list[ChainParams]:
    """Chains of a causal model in which a retriever finds similar items: the user's, others', for the prompt, for
    groups."""
    similar = {**ACTIVE["calibration"][1], "calibration.ranking": "similarity", "calibration.width": 0.2}
    items = {"prompt.k": 2, "prompt.ranking": "similarity"}
    groups = {
        **ACTIVE["adapter"][0],
        "adapter.level": "cluster",
        "adapter.groups": 2,
        "adapter.cluster_by": "embedding",
    }
    return [
        params_of(("calibration",), similar),
        params_of(("calibration",), similar, SHARED),
        params_of(("prompt", "calibration"), similar, items),
        params_of(("adapter", "calibration"), similar, groups),
    ]


def growing(seed: int, users: int, questions: int = 3) -> Dataset:
    """A world in which a user's later question knows one item more."""
    dataset = short_world(seed, users, questions, items=6)
    seen: dict[str, int] = {}
    out = []
    for question in dataset.questions:
        seen[question.user_id] = seen.get(question.user_id, 1) + 1
        items = known_items(dataset.task, question)[: seen[question.user_id]]
        out.append(replace(question, history=items))
    return Dataset(dataset.task, dataset.labels, tuple(out))


def fitted_on(dataset: Dataset, params: ChainParams, tools: Tools) -> Fitted:
    """A chain fitted on a data set's users."""
    return fit(params, begin(dataset, tools, "tune"), tools)


def answers_to(fitted: Fitted, dataset: Dataset, scorer: CachedScorer) -> Any:
    """Log-probabilities [n, K] of a chain as it is served."""
    tools = Tools(scorer)
    found = answer(fitted, begin(dataset, tools), tools).answer
    assert found is not None
    return found.log_probs
