"""What is raced: chains with their spaces, each an ordinary study.

What an arm costs is counted in passes of the model over the tune users' questions as they are: `passes` for its first
trial, `answers` for answering as many questions when it has learned. Both are estimates, to order the arms by and to
say which cannot be afforded; what a trial really takes is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from personalization.stages import STAGES, stage
from search_spaces import ChainParams
from search_spaces.adapter import BASELINE

PRIORS = ("similar", "user")
"""What the calibration on top of another stage may add of the user's taste."""
RANKED: Mapping[str, tuple[str, ...]] = {"causal": ("bm25", "recency")}
"""kind of what embeds -> rankings of similar items; not listed: all. A language model's own embeddings rank badly and
cost a pass over the items."""
SETTLED = (
    "schedule", "accumulate", "alpha", "clip", "patience", "warm_up", "label", "margin", "diversity", "dropout",
    "weight_decay",
)  # fmt: skip
"""What of a training is left as it is in the baseline."""
TRAINED: Mapping[str, Any] = {
    "blend": 1.0,
    "start": [0.5, 0.67, 0.84],
    "rank": [4, 8],
    "cluster_by": ["words", "labels"],
    "word_dropout": [0.0, 0.1],
    "epochs": 3,
    "lr": {"low": 5e-4, "high": 2e-2, "log": True},
    "lr_ratio": [1.0, 4.0],
    "match": [0.0, 0.1],
    "anchor": [0.0, 0.01],
    **{name: getattr(BASELINE, name) for name in SETTLED},
}
"""How adapters are trained while arms are raced."""
EXACT: Mapping[str, Any] = {"fit": "exact"}
"""The calibration on top of what was trained: solved for, not searched."""


NOT_AFFORDED = "not afforded"
"""How the fate of an arm begins that was offered a slice and not begun."""


class Scene(NamedTuple):
    """What costs depend on: the kind of model, questions and labelled items of the tune users, a question's and an
    item's length (in characters), seconds of one pass over the questions, and of a training on the items; `embedding`:
    what a text costs the encoder that embeds it, as a share of a pass of the model, 0 without one; `epochs` of a
    training, None where nothing is trained."""

    kind: str
    questions: int
    items: int
    question_length: float
    item_length: float
    pass_s: float
    training_s: float
    embedding: float = 0.0
    epochs: int | None = None

    def of_items(self, count: float) -> float:
        """Passes that so many items cost."""
        return count * self.item_length / max(1.0, self.questions * self.question_length)


Passes = Callable[[Scene], float]


def nothing(_: Scene) -> float:
    """Arithmetic on scores that are there."""
    return 0.0


def ranked(scene: Scene) -> float:
    """An encoder embeds the items; words are ranked without a model."""
    return scene.embedding * scene.of_items(scene.items)


def shown(scene: Scene) -> float:
    """A pass with eight items in front of each question, as the arm's first setting has them."""
    return 1 + scene.of_items(8 * scene.questions)


def read(scene: Scene) -> float:
    """The items are run, each as a question; an encoder reads them bare."""
    return scene.items / max(1, scene.questions) if scene.kind == "causal" else scene.of_items(scene.items)


def steered(scene: Scene) -> float:
    """Items for the directions, then an edited pass."""
    return 1 + 2 * read(scene)


def once(_: Scene) -> float:
    """A pass with what was learned."""
    return 1.0


def trained(scene: Scene) -> float:
    """A training on the items, as measured, and a pass with what was learned."""
    return 1 + scene.training_s / max(1e-9, scene.pass_s)


def trained_twice(scene: Scene) -> float:
    """Groups, users and prefixes may start from the LoRA of all users, which is trained before."""
    return 2 * trained(scene)


@dataclass(frozen=True)
class Arm:
    """One arm. `space`: stage -> what is searched there in the place of all; `first`: trials of its first slice;
    `most`: after which nothing is left to try; `answers`: where answering costs other than a first trial;
    `start_from`: the arm whose stages are taken as it found them; `mixes`: whether it answers a user from other users'
    items."""

    name: str
    says: str
    chain: tuple[str, ...]
    passes: Passes
    space: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    first: int = 20
    most: int = 160
    answers: Passes | None = None
    start_from: str | None = None
    mixes: bool = False

    def answering(self, scene: Scene, params: ChainParams | None = None) -> float:
        """Passes for answering as many questions as there are tune questions, with these parameters where they are
        known: a head of all users reads no items of the one who asks."""
        passes = (self.answers or self.passes)(scene)
        if params is None or "head" not in self.chain or params.full()["head.level"] == "user":
            return passes
        return max(0.0, passes - read(scene))

    def again(self, scene: Scene) -> float:
        """Of its passes at most those that are over items whose states or embeddings are kept by text, and so are run
        once; what stands on an adapter keeps none."""
        kept = 0.0 if "adapter" in self.chain else 2.0 if "steering" in self.chain else float("head" in self.chain)
        return kept * read(scene)

    def space_for(self, embedder: str) -> dict[str, Any]:
        """Overrides of the chain's space, by full name, for this kind of what embeds."""
        spaces = dict(self.space)
        if "calibration" in self.chain:
            prior: dict[str, Any] = {"prior_mode": list(PRIORS), **self.space.get("calibration", {})}
            if "similar" in prior["prior_mode"] and embedder in RANKED:
                prior["ranking"] = list(RANKED[embedder])
            spaces["calibration"] = prior
        return {f"{stage}.{name}": value for stage, own in spaces.items() for name, value in own.items()}


def _adapter(name: str, says: str, adapter: str, level: str) -> Arm:
    spaces = {"adapter": {**TRAINED, "adapter": adapter, "level": level}, "calibration": EXACT}
    passes = trained if (adapter, level) == ("lora", "unified") else trained_twice
    answers = passes if level == "user" else once
    return Arm(name, says, ("adapter", "calibration"), passes, spaces, 3, 40, answers)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(
            "calibration",
            "the model's label bias and each user's label counts",
            ("calibration",),
            nothing,
            {"calibration": {"prior_mode": ["user", "global"]}},
        ),
        Arm(
            "similar",
            "labels that the user gave to similar items",
            ("calibration",),
            ranked,
            {"calibration": {"prior_mode": "similar"}},
            first=30,
        ),
        Arm(
            "shared",
            "labels that the user, and others of like taste, gave to similar items",
            ("calibration",),
            ranked,
            {
                "calibration": {
                    "prior_mode": list(PRIORS),
                    "reach": {"low": 0.05, "high": 4.0},
                    "floor": {"low": 0.2, "high": 0.95},
                    "near": {"low": 0.02, "high": 1.0, "log": True},
                    "kin": {"low": 0.0, "high": 8.0},
                }
            },
            first=30,
            mixes=True,
        ),
        Arm(
            "own",
            "label bias, with strengths of the user's taste that are each user's own where that helps",
            ("calibration",),
            read,
            {"calibration": {"prior_mode": list(PRIORS), "per_user": ["gamma", "kappa", "tau", "all"]}},
            first=15,
            most=80,
        ),
        Arm(
            "wording",
            "other words for the labels, and a scale for their similarity",
            ("prompt", "calibration"),
            ranked,
            first=30,
        ),
        Arm(
            "head",
            "a logistic head on what the model makes of an item, of all users or of each",
            ("head", "calibration"),
            read,
            {
                "head": {
                    "head": "logistic",
                    "level": ["unified", "user"],
                    "c": [0.001, 0.003, 0.01, 0.03],
                    "c_own": [0.001, 0.01, 0.1],
                },
                "calibration": {"fit": "exact"},
            },
            first=15,
            most=120,
        ),
        Arm(
            "prompt",
            "items of the user's history in front of the question",
            ("prompt", "calibration"),
            shown,
            {"prompt": {"k": [1, 2, 4, 8], "ranking": ["bm25", "recency"]}},
            first=4,
            most=80,
        ),
        Arm(
            "steering",
            "hidden states moved along a direction from the user's history",
            ("steering", "calibration"),
            steered,
            {"steering": {"site": "block", "gate": "none", "groups": 1, "count": [1, 2]}},
            first=4,
            most=80,
        ),
        _adapter("lora", "LoRA learned from all users' items", "lora", "unified"),
        _adapter("lora-groups", "LoRA for groups of users", "lora", "cluster"),
        _adapter("lora-user", "LoRA for each user", "lora", "user"),
        _adapter("prefix", "a learned prefix for all users", "prefix", "unified"),
        _adapter("prefix-groups", "a learned prefix for groups of users", "prefix", "cluster"),
    )
}
"""name -> arm."""
NOT_OF: Mapping[str, tuple[str, ...]] = {
    "causal": ("wording",),
    "encoder": ("prompt", "prefix", "prefix-groups"),
}
"""kind of model -> arms that it cannot have, or that would be another's twin."""


PROMISING: Mapping[str, tuple[str, ...]] = {"causal": ("head", "lora"), "encoder": ("head",)}
"""kind of model -> arms that led our own studies on real data (docs/results.md)."""


def together(one: Arm, other: Arm) -> Arm | None:
    """Two arms in one chain; None where both have the same stage, or neither has one beside the calibration.

    The arm whose stage stands lower is taken as it was found (`start_from`), and the other is searched on top of it. An
    arm that is a calibration alone is searched on top of the other, if it brings what no other arm has. The texts are
    embedded by then; what is run behind items in the prompt is as much longer as they are.
    """
    order = list(STAGES)
    lower, upper = sorted((one, other), key=lambda arm: order.index(arm.chain[0]))
    if upper.chain == ("calibration",):
        if not upper.mixes or lower.chain == ("calibration",):
            return None
        space: Mapping[str, Mapping[str, Any]] = {
            "calibration": {**lower.space.get("calibration", {}), **upper.space["calibration"]}
        }
    elif set(lower.chain) & set(upper.chain) - {"calibration"}:
        return None
    else:
        space = upper.space
    stages = {*lower.chain, *upper.chain}

    def passes(scene: Scene) -> float:
        embedded = (ranked, read) if scene.kind == "encoder" else (ranked,)
        longer = shown(scene) if lower.passes is shown else 1.0
        return 0.0 if upper.passes in embedded else longer * upper.passes(scene)

    return Arm(
        f"{lower.name}+{upper.name}",
        f"{upper.says}, on top of {lower.says}",
        tuple(name for name in order if name in stages),
        passes,
        space,
        upper.first,
        upper.most,
        lambda scene: lower.answering(scene) + upper.answering(scene),
        start_from=lower.name,
        mixes=lower.mixes or upper.mixes,
    )


def wanted(kind: str, stages: Sequence[str], mix_users: bool) -> list[Arm]:
    """The arms that a model can have, of these stages (none given: all), cheapest kinds first as listed."""
    return [
        arm
        for arm in ARMS.values()
        if all(kind in stage(name).kinds for name in arm.chain)
        and arm.name not in NOT_OF.get(kind, ())
        and (mix_users or not arm.mixes)
        and (not stages or set(arm.chain) <= {*stages, "calibration"})
    ]
