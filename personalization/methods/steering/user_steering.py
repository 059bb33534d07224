"""Steered scores of a data set's questions: history -> directions -> edit -> table.

The last `HISTORY_ITEMS` of the items known when a question is asked are asked in its manner, once with the other
items in front (personal) and once alone (neutral); see `directions`. An answer does not depend on what else is asked.
What is learned from all users together (groups and their directions, general direction, residual norms, gate threshold)
is learned on the tune users and goes with a deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.backbones.cached import CachedScorer
from personalization.data.known import History, known_items
from personalization.data.prompts import continuations, history_text, prompt, prompt_about, question_frame
from personalization.data.records import Dataset, Question
from personalization.data.splits import user_blocks
from personalization.errors import DataError
from personalization.methods.history.clusters import Clusters, cluster
from personalization.methods.steering.directions import (
    Pairs,
    ccs,
    group_directions,
    personal_directions,
    separation,
    shrunk,
    unit,
)
from personalization.methods.steering.moves import Edit, SteeringVectors, cosine_gate, product_gate
from personalization.methods.steering.steered_scorer import SteeredScorer, SteeredTable, joined

HISTORY_ITEMS = 8
PRODUCT_THRESHOLD = 0.022
"""The second report's threshold for the product gate."""

Recent = tuple[History, str]
"""What a question is steered by: its latest items, and how they are asked."""


@dataclass(frozen=True)
class Settings:
    """One way to steer.

    `groups`: so many groups of users, by the words of their histories, towards which users are shrunk. `place`: "start"
    edits `count` layers from `start`, a share of the depth; "auto" edits the `count` layers where the direction best
    separates states with and without the history; "2,4,5" edits these. `open_share`: with the cosine gate, the share of
    the tune questions that are steered: those that agree most with their users' directions.
    """

    direction: str
    general: str
    shrink: float
    groups: int
    edit: str
    site: str
    scope: str
    alpha_personal: float
    alpha_general: float
    place: str
    start: float
    count: int
    gate: str
    open_share: float


@dataclass(frozen=True)
class Learned:
    """What steering takes from the tune users.

    `pooled` float32 [G, L, d]: the direction of each group; `general` [L, d]; `norms` [L]; the edited layers; the
    gate's threshold; `clusters`: the groups, None where all users are one.
    """

    layers: tuple[int, ...]
    clusters: Clusters | None
    pooled: NDArray[np.float32]
    general: NDArray[np.float32]
    norms: NDArray[np.float32]
    threshold: float

    def listed(self) -> dict[str, Any]:
        """JSON-able; of the directions those at the edited layers."""
        kept = list(self.layers)
        return {
            "edited": kept,
            "depth": len(self.norms),
            "threshold": self.threshold,
            "clusters": None if self.clusters is None else self.clusters.listed(),
            "pooled": self.pooled[:, kept].tolist(),
            "general": self.general[kept].tolist(),
            "norms": self.norms[kept].tolist(),
        }

    @classmethod
    def from_listed(cls, listed: Mapping[str, Any]) -> Learned:
        """What `listed` wrote; zero at the other layers."""
        edited, depth = tuple(listed["edited"]), listed["depth"]

        def at_all_layers(name: str, axis: int) -> NDArray[np.float32]:
            values = np.moveaxis(np.array(listed[name], dtype=np.float32), axis, 0)
            full = np.zeros((depth, *values.shape[1:]), dtype=np.float32)
            full[list(edited)] = values
            return np.moveaxis(full, 0, axis)

        clusters = None if listed["clusters"] is None else Clusters.from_listed(listed["clusters"])
        pooled, general, norms = at_all_layers("pooled", 1), at_all_layers("general", 0), at_all_layers("norms", 0)
        return cls(edited, clusters, pooled, general, norms, float(listed["threshold"]))


def _recent(task: str, question: Question) -> Recent:
    """The latest of what is known when the question is asked, and the frame in which its items are asked."""
    return known_items(task, question)[-HISTORY_ITEMS:], question_frame(task, question.text)


class UserSteering:
    """The questions of one data set, ready to be steered, in so many blocks of whole users."""

    def __init__(
        self,
        scorer: CachedScorer,
        dataset: Dataset,
        progress: Callable[[int, int], None] | None = None,
        blocks: int = 1,
    ) -> None:
        self.scorer, self.dataset, self.progress = scorer, dataset, progress
        self.blocks = user_blocks([q.user_id for q in dataset.questions], blocks)
        self._pairs: dict[str, dict[Recent, list[Pairs]]] = {}
        self._directions: dict[tuple[str, str], NDArray[np.float32]] = {}
        self._found: dict[tuple[str, int], NDArray[np.float32]] = {}
        self._separations: dict[tuple[str, str], NDArray[np.float64]] = {}
        self._clusters: dict[int, Clusters] = {}

    @cached_property
    def histories(self) -> dict[Recent, Question]:
        """What is steered by, each with one of its questions."""
        recent = {_recent(self.dataset.task, q): q for q in self.dataset.questions}
        return {key: question for key, question in recent.items() if key[0]}

    @cached_property
    def paired(self) -> list[Recent]:
        """The histories that tell a direction: one item has no other in front of it."""
        return [key for key in self.histories if len(key[0]) > 1]

    def pairs(self, site: str) -> dict[Recent, list[Pairs]]:
        """history -> states of its items at each layer's site."""
        if site not in self._pairs:
            self._pairs[site] = self._asked(site) if self.paired else {}
        return self._pairs[site]

    def _asked(self, site: str) -> dict[Recent, list[Pairs]]:
        personal: list[str] = []
        neutral: list[str] = []
        rows: dict[Recent, list[int]] = {}
        for recent in self.paired:
            question, (items, _) = self.histories[recent], recent
            for item in items:
                others = [other for other in items if other is not item]
                alone = prompt_about(self.dataset.task, question, item.text)
                rows.setdefault(recent, []).append(len(neutral))
                neutral.append(alone)
                personal.append(history_text(self.dataset.task, others) + alone)
        states = self.scorer.last_states([*personal, *neutral], self.progress, site)
        with_history, without = states[: len(neutral)], states[len(neutral) :]
        return {
            recent: [Pairs(with_history[own, layer], without[own, layer]) for layer in range(states.shape[1])]
            for recent, own in rows.items()
        }

    @cached_property
    def questions(self) -> list[SteeredScorer]:
        """The questions of each block, with the states that their trials start from."""
        backbone: Any = self.scorer.backbone
        return [
            SteeredScorer(
                backbone,
                [prompt(self.dataset.task, self.dataset.questions[i]) for i in rows],
                continuations(self.dataset.labels),
                self.scorer.folder / "states",
                self.scorer.identity,
            )
            for rows in self.blocks
        ]

    def learn(self, settings: Settings) -> Learned:
        """Pooled and general directions, norms and the gate's threshold of these users; DataError without histories."""
        if not self.paired:
            raise DataError("steering needs histories, and no tune user has two items; use objective: calibration")
        layers, own = self._layers(settings), self._own(settings)
        clusters = self._grouped(settings.groups) if settings.groups > 1 else None
        count = 1 if clusters is None else len(clusters.centres)
        pooled = group_directions(own, self._groups(clusters, self.paired), count, settings.shrink)
        general = unit(self._own(replace(settings, direction="mean_difference")).mean(axis=0))
        if settings.general == "ccs":
            for layer in layers:
                general[layer] = self._ccs(settings.site, layer)
        learned = Learned(layers, clusters, pooled, general, self._norms, PRODUCT_THRESHOLD)
        if settings.gate != "cosine":
            return learned
        values, known = self._gate_values(settings, learned, self._vectors(settings, learned), resume=True)
        return replace(learned, threshold=float(np.quantile(values[known], 1 - settings.open_share)))

    def scores(self, settings: Settings, learned: Learned, resume: bool = True) -> SteeredTable:
        """The steered table; users without history are not steered. `resume=False`: one pass, and no states kept."""
        return joined(list(self.tables(settings, learned, resume)), self.blocks)

    def tables(self, settings: Settings, learned: Learned, resume: bool = True) -> Iterator[SteeredTable]:
        """The steered table of each block, one after the other."""
        vectors = self._vectors(settings, learned)
        values, known = self._gate_values(settings, learned, vectors, resume)
        opened = known if settings.gate == "none" else known & (values >= learned.threshold)
        gates = opened.astype(np.float32)
        edit = Edit(learned.layers, settings.edit, settings.site, settings.alpha_personal, settings.alpha_general)
        users, _ = self._users()
        for rows, questions in zip(self.blocks, self.questions, strict=True):
            yield questions.table(vectors, edit, users[rows], gates[rows], settings.scope, resume)

    def _layers(self, settings: Settings) -> tuple[int, ...]:
        """The edited layers."""
        depth = len(self._norms)
        if settings.place == "auto":
            best = np.argsort(-self.separations(settings), kind="stable")[: settings.count]
            return tuple(sorted(best.tolist()))
        if settings.place != "start":
            layers = sorted({int(layer) for layer in settings.place.split(",")})
            if layers[-1] >= depth:
                raise DataError(f"place: {settings.place} names layer {layers[-1]}; the model has 0 to {depth - 1}")
            return tuple(layers)
        first = min(int(settings.start * depth), depth - 1)
        return tuple(range(first, min(first + settings.count, depth)))

    def separations(self, settings: Settings) -> NDArray[np.float64]:
        """How well the direction tells states with the history from states without, at each layer: AUC, [L]."""
        key = (settings.site, settings.direction)
        if key not in self._separations:
            self._separations[key] = separation(self.pairs(settings.site), settings.direction)
        return self._separations[key]

    @cached_property
    def _norms(self) -> NDArray[np.float32]:
        """Mean length of the neutral states that leave each layer."""
        layers = zip(*self.pairs("block").values(), strict=True)
        lengths = [np.concatenate([np.linalg.norm(pairs.neutral, axis=1) for pairs in layer]) for layer in layers]
        return np.array([length.mean() for length in lengths], dtype=np.float32)

    def _ccs(self, site: str, layer: int) -> NDArray[np.float32]:
        if (site, layer) not in self._found:
            here = [layers[layer] for layers in self.pairs(site).values()]
            personal, neutral = (np.concatenate([getattr(p, side) for p in here]) for side in ("personal", "neutral"))
            self._found[site, layer] = ccs(personal, neutral)[0]
        return self._found[site, layer]

    def _own(self, settings: Settings) -> NDArray[np.float32]:
        """Each history's own direction, float32 [U, L, d]."""
        key = (settings.site, settings.direction)
        if key not in self._directions:
            self._directions[key] = personal_directions(self.pairs(settings.site), settings.direction)
        return self._directions[key]

    def _grouped(self, k: int) -> Clusters:
        if k not in self._clusters:
            self._clusters[k] = cluster("words", [items for items, _ in self.paired], (), self.scorer.embeddings, k)
        return self._clusters[k]

    def _groups(self, clusters: Clusters | None, known: Sequence[Recent]) -> NDArray[np.int64]:
        """The group of each history, [U]."""
        if clusters is None:
            return np.zeros(len(known), dtype=np.int64)
        return clusters.assign(clusters.features([items for items, _ in known], self.scorer.embeddings))

    def _vectors(self, settings: Settings, learned: Learned) -> SteeringVectors:
        if not self.histories:
            nobody = np.zeros((1, *learned.general.shape), dtype=np.float32)
            return SteeringVectors(("",), nobody, learned.general, learned.norms)
        everybody = list(self.histories)
        items = np.array([len(recent) if len(recent) > 1 else 0 for recent, _ in everybody])
        own = np.zeros((len(everybody), *learned.general.shape), dtype=np.float32)
        if self.paired:
            own[items > 0] = self._own(settings)
        toward = learned.pooled[self._groups(learned.clusters, everybody)]
        personal = unit(shrunk(own, items, toward, settings.shrink))
        names = tuple(f"{recent[0].id} to {recent[-1].id}" for recent, _ in everybody)
        return SteeringVectors(names, personal, learned.general, learned.norms)

    def vectors(self, settings: Settings) -> SteeringVectors:
        """The vectors of these users, with what they were found by."""
        found = self._vectors(settings, self.learn(settings))
        named = {name: str(value) for name, value in asdict(settings).items()}
        return replace(found, meta={"model": self.scorer.fingerprint, **named})

    def _users(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The vectors of each question, and whether there are any."""
        index = {recent: i for i, recent in enumerate(self.histories)}
        found = np.array([index.get(_recent(self.dataset.task, q), -1) for q in self.dataset.questions])
        return np.maximum(found, 0), found >= 0

    def _gate_values(
        self, settings: Settings, learned: Learned, vectors: SteeringVectors, resume: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What the gate compares with its threshold, for each question, and whether its user has a direction."""
        users, known = self._users()
        first = learned.layers[0]
        if settings.gate == "product":
            scaled = settings.alpha_personal * vectors.personal[users, first]
            return product_gate(scaled, settings.alpha_general * vectors.general[first]), known
        if settings.gate == "none":
            return np.ones(len(users)), known
        states = np.empty((len(users), vectors.personal.shape[2]), dtype=np.float32)
        if settings.site == "mlp":
            prompts = [prompt(self.dataset.task, question) for question in self.dataset.questions]
            states[:] = self.scorer.last_states(prompts, self.progress, "mlp")[:, first]
        else:
            for rows, questions in zip(self.blocks, self.questions, strict=True):
                states[rows] = questions.last_states(first, resume)
        return cosine_gate(states, vectors.personal[users, first]), known
