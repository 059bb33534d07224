"""What steers a question: history -> directions -> vectors and gates.

The last `HISTORY_ITEMS` of the items known when a question is asked are asked in its manner, once with the other
items in front (personal) and once alone (neutral); see `directions`. Their states are those of the model under whatever
is done to it below. An answer does not depend on what else is asked. What is learned from all users together (groups
and their directions, general direction, residual norms, gate threshold) is learned on the tune users and goes with a
deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.data.known import History, known_items
from personalization.data.prompts import history_text, prompt_about, question_frame
from personalization.data.records import Dataset, Question
from personalization.errors import DataError
from personalization.files import write_arrays
from personalization.methods.history.clusters import Clusters, Embed, cluster
from personalization.methods.steering.directions import (
    Pairs,
    ccs,
    group_directions,
    personal_directions,
    separation,
    shrunk,
    unit,
)
from personalization.methods.steering.moves import Move, SteeringVectors
from personalization.tasks import Task

HISTORY_ITEMS = 8
REMEMBERED = 10_000
"""Histories whose directions a server keeps in memory; those that came first are forgotten first."""
PRODUCT_THRESHOLD = 0.022
"""The second report's threshold for the product gate."""

Recent = tuple[History, str]
"""What a question is steered by: its latest items, and how they are asked."""
Kept = dict[tuple[Recent, str, str, tuple[int, ...]], NDArray[np.float32]]
"""(history, kind of direction, site, layers) -> its own direction [L, d]."""
States = Callable[[Sequence[str], NDArray[np.int64], Sequence[int], str], NDArray[np.float32]]
"""(prompts [m], the question that each belongs to [m], layers [L], site) -> states of their last tokens [m, L, d]."""


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

    @property
    def move(self) -> Move:
        """How far states move."""
        return Move(self.edit, self.site, self.alpha_personal, self.alpha_general)


@dataclass(frozen=True)
class Learned:
    """What steering takes from the tune users.

    `pooled` float32 [G, L, d]: the direction of each group at the L edited layers; `general` [L, d]; `norms` [L]; the
    gate's threshold; `clusters`: the groups, None where all users are one.
    """

    layers: tuple[int, ...]
    clusters: Clusters | None
    pooled: NDArray[np.float32]
    general: NDArray[np.float32]
    norms: NDArray[np.float32]
    threshold: float

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the directions; what a deploy config says of them."""
        write_arrays(
            folder / "steering.safetensors", {"pooled": self.pooled, "general": self.general, "norms": self.norms}
        )
        clusters = None if self.clusters is None else self.clusters.save(folder / "groups.safetensors")
        return {"layers": list(self.layers), "threshold": self.threshold, "groups": clusters}

    @classmethod
    def load(cls, listed: Mapping[str, Any], folder: Path) -> Learned:
        """What `save` wrote."""
        from safetensors.numpy import load_file

        clusters = None if listed["groups"] is None else Clusters.load(folder / "groups.safetensors")
        arrays = load_file(folder / "steering.safetensors")
        return cls(tuple(listed["layers"]), clusters, threshold=float(listed["threshold"]), **arrays)


def _recent(task: Task, question: Question) -> Recent:
    """The latest of what is known when the question is asked, and the frame in which its items are asked."""
    return known_items(task, question)[-HISTORY_ITEMS:], question_frame(task, question.text)


class Directions:
    """The directions of the questions of one data set. `depth`: of the model; `states` and `embed` run it.

    `kept`: directions by history, where those of earlier questions may be taken from and later ones find these.
    """

    def __init__(self, dataset: Dataset, depth: int, states: States, embed: Embed, kept: Kept | None = None) -> None:
        self.dataset, self.depth, self.states, self.embed, self.kept = dataset, depth, states, embed, kept
        self._pairs: dict[tuple[str, tuple[int, ...]], dict[Recent, list[Pairs]]] = {}
        self._own: dict[tuple[Any, ...], NDArray[np.float32]] = {}
        self._ccs: dict[tuple[str, int], NDArray[np.float32]] = {}
        self._separations: dict[tuple[str, str], NDArray[np.float64]] = {}
        self._clusters: dict[int, Clusters] = {}

    @cached_property
    def histories(self) -> dict[Recent, int]:
        """What is steered by, each with one of its questions."""
        recent = {_recent(self.dataset.task, q): row for row, q in enumerate(self.dataset.questions)}
        return {key: row for key, row in recent.items() if key[0]}

    @cached_property
    def paired(self) -> list[Recent]:
        """The histories that tell a direction: one item has no other in front of it."""
        return [key for key in self.histories if len(key[0]) > 1]

    @cached_property
    def all_layers(self) -> tuple[int, ...]:
        """Of the model."""
        return tuple(range(self.depth))

    def pairs(self, site: str, layers: tuple[int, ...]) -> dict[Recent, list[Pairs]]:
        """history -> states of its items at these layers' site."""
        whole = self._pairs.get((site, self.all_layers))
        if whole is not None:
            return {recent: [found[layer] for layer in layers] for recent, found in whole.items()}
        if (site, layers) not in self._pairs:
            self._pairs[site, layers] = self._asked(self.paired, site, layers) if self.paired else {}
        return self._pairs[site, layers]

    def _asked(self, histories: Sequence[Recent], site: str, layers: tuple[int, ...]) -> dict[Recent, list[Pairs]]:
        personal: list[str] = []
        neutral: list[str] = []
        owners: list[int] = []
        rows: dict[Recent, list[int]] = {}
        for recent in histories:
            items, row = recent[0], self.histories[recent]
            for item in items:
                others = [other for other in items if other is not item]
                alone = prompt_about(self.dataset.task, self.dataset.questions[row], item.text)
                rows.setdefault(recent, []).append(len(neutral))
                neutral.append(alone)
                personal.append(history_text(self.dataset.task, others) + alone)
                owners.append(row)
        states = self.states([*personal, *neutral], np.array([*owners, *owners]), layers, site)
        with_history, without = states[: len(neutral)], states[len(neutral) :]
        return {
            recent: [Pairs(with_history[own, at], without[own, at]) for at in range(len(layers))]
            for recent, own in rows.items()
        }

    def learn(self, settings: Settings) -> Learned:
        """Pooled and general directions and norms of these users, without a gate's threshold; DataError without
        histories."""
        if not self.paired:
            raise DataError("steering needs histories, and no tune user has two items; leave steering out of the chain")
        self.pairs(settings.site, self.all_layers)
        layers = self.layers(settings)
        own = self.own(settings.direction, settings.site, layers)
        clusters = self._grouped(settings.groups) if settings.groups > 1 else None
        count = 1 if clusters is None else len(clusters.centres)
        pooled = group_directions(own, self._groups(clusters, self.paired), count, settings.shrink)
        general = unit(self.own("mean_difference", settings.site, layers).mean(axis=0))
        if settings.general == "ccs":
            general = np.stack([self._consistent(settings.site, layer) for layer in layers])
        return Learned(layers, clusters, pooled, general, self._norms(layers), PRODUCT_THRESHOLD)

    def layers(self, settings: Settings) -> tuple[int, ...]:
        """The edited layers."""
        if settings.place == "auto":
            best = np.argsort(-self.separations(settings), kind="stable")[: settings.count]
            return tuple(sorted(best.tolist()))
        if settings.place != "start":
            layers = sorted({int(layer) for layer in settings.place.split(",")})
            if layers[-1] >= self.depth:
                raise DataError(
                    f"place: {settings.place} names layer {layers[-1]}; the model has 0 to {self.depth - 1}"
                )
            return tuple(layers)
        first = min(int(settings.start * self.depth), self.depth - 1)
        return tuple(range(first, min(first + settings.count, self.depth)))

    def separations(self, settings: Settings) -> NDArray[np.float64]:
        """How well the direction tells states with the history from states without, at each layer: AUC, [L]."""
        key = (settings.site, settings.direction)
        if key not in self._separations:
            self._separations[key] = separation(self.pairs(settings.site, self.all_layers), settings.direction)
        return self._separations[key]

    def _norms(self, layers: tuple[int, ...]) -> NDArray[np.float32]:
        """Mean length of the neutral states that leave these layers."""
        self.pairs("block", self.all_layers)
        found = zip(*self.pairs("block", layers).values(), strict=True)
        lengths = [np.concatenate([np.linalg.norm(pairs.neutral, axis=1) for pairs in layer]) for layer in found]
        return np.array([length.mean() for length in lengths], dtype=np.float32)

    def _consistent(self, site: str, layer: int) -> NDArray[np.float32]:
        """The general direction by contrast-consistent search."""
        if (site, layer) not in self._ccs:
            here = [found[0] for found in self.pairs(site, (layer,)).values()]
            personal, neutral = (np.concatenate([getattr(p, side) for p in here]) for side in ("personal", "neutral"))
            self._ccs[site, layer] = ccs(personal, neutral)[0]
        return self._ccs[site, layer]

    def own(self, kind: str, site: str, layers: tuple[int, ...]) -> NDArray[np.float32]:
        """Each paired history's own direction at these layers, float32 [U, L, d]."""
        key = (kind, site, layers)
        if self.kept is not None:
            return self._remembered(kind, site, layers, self.kept)
        if key not in self._own:
            self._own[key] = personal_directions(self.pairs(site, layers), kind)
        return self._own[key]

    def _remembered(self, kind: str, site: str, layers: tuple[int, ...], kept: Kept) -> NDArray[np.float32]:
        """The same, with those of histories that nobody asked with before made now."""
        wanted = [(recent, kind, site, layers) for recent in self.paired]
        new = [key[0] for key in wanted if key not in kept]
        if new:
            made = personal_directions(self._asked(new, site, layers), kind)
            kept.update({(recent, kind, site, layers): one for recent, one in zip(new, made, strict=True)})
        found = np.stack([kept[key] for key in wanted])
        while len(kept) > REMEMBERED:
            kept.pop(next(iter(kept)))
        return found

    def _grouped(self, k: int) -> Clusters:
        if k not in self._clusters:
            self._clusters[k] = cluster("words", [items for items, _ in self.paired], (), self.embed, k)
        return self._clusters[k]

    def _groups(self, clusters: Clusters | None, known: Sequence[Recent]) -> NDArray[np.int64]:
        """The group of each history, [U]."""
        if clusters is None:
            return np.zeros(len(known), dtype=np.int64)
        return clusters.assign(clusters.features([items for items, _ in known], self.embed))

    def vectors(self, settings: Settings, learned: Learned) -> SteeringVectors:
        """The vectors of these histories, in the order of `histories`; one of zeros where there are none."""
        if not self.histories:
            nobody = np.zeros((1, *learned.general.shape), dtype=np.float32)
            return SteeringVectors(learned.layers, nobody, learned.general, learned.norms)
        everybody = list(self.histories)
        items = np.array([len(recent) if len(recent) > 1 else 0 for recent, _ in everybody])
        own = np.zeros((len(everybody), *learned.general.shape), dtype=np.float32)
        if self.paired:
            own[items > 0] = self.own(settings.direction, settings.site, learned.layers)
        toward = learned.pooled[self._groups(learned.clusters, everybody)]
        personal = unit(shrunk(own, items, toward, settings.shrink))
        return SteeringVectors(learned.layers, personal, learned.general, learned.norms)

    def users(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The vectors of each question, and whether there are any."""
        index = {recent: i for i, recent in enumerate(self.histories)}
        found = np.array([index.get(_recent(self.dataset.task, q), -1) for q in self.dataset.questions], dtype=np.int64)
        return np.maximum(found, 0), found >= 0


def with_threshold(learned: Learned, values: NDArray[np.float64], open_share: float) -> Learned:
    """A gate that is open for this share of the tune questions, whose values these are."""
    return replace(learned, threshold=float(np.quantile(values, 1 - open_share)))
