"""What steers a question: history -> directions -> vectors and gates.

The latest of the items known when a question is asked are asked in its manner, with a history in front (personal) and
alone (neutral); see `fronts` and `directions`. Their states are those of the model under whatever is done to it below.
An answer does not depend on what else is asked. What is learned from all users together (groups and their directions,
general direction, what users have in common, residual norms, gate threshold) is learned on the tune users and goes with
a deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.data.known import History, known_items
from personalization.data.records import Dataset, Question
from personalization.errors import DataError
from personalization.files import write_arrays
from personalization.methods.history.clusters import Clusters, Embed, cluster
from personalization.methods.steering.directions import (
    Common,
    Pairs,
    ccs,
    common_part,
    group_directions,
    personal_directions,
    separation,
    shrunk,
    unit,
)
from personalization.methods.steering.fronts import (
    LONGEST,
    PAIRS,
    ROOM,
    neutral_prompts,
    newest_that_fit,
    personal_prompts,
    read_items,
    segments,
)
from personalization.methods.steering.moves import Move, SteeringVectors

ROUNDING = 1e-5
"""By how much a cosine may differ from batch to batch."""
SHORTER = 0.9
"""By how much less than its share a text is kept that does not fit."""
REMEMBERED = 10_000
"""Histories whose directions a server keeps in memory; those that came first are forgotten first."""
PRODUCT_THRESHOLD = 0.022
"""The second report's threshold for the product gate."""

Recent = tuple[History, str]
"""What a question is steered by: its latest items, and how they are asked."""
Kept = dict[tuple[Recent, tuple[Any, ...]], NDArray[np.float32]]
"""(history, what it was asked for) -> its own direction [L, d]."""
States = Callable[[Sequence[str], NDArray[np.int64], Sequence[int], str], NDArray[np.float32]]
"""(prompts [m], the question that each belongs to [m], layers [L], site) -> states of their last tokens [m, L, d]."""


class Reading(NamedTuple):
    """What reads histories: a model of this depth, with the states and embeddings that it gives.

    `lengths`: texts -> tokens of each, None where nothing is cut; `room`: tokens that a history may take.
    """

    depth: int
    states: States
    embed: Embed
    lengths: Callable[[Sequence[str]], Sequence[int]] | None = None
    room: int = ROOM


@dataclass(frozen=True)
class Settings:
    """One way to steer.

    `groups`: so many groups of users, by the words of their histories, towards which users are shrunk. `place`: "start"
    edits `count` layers from `start`, a share of the depth; "auto" edits the `count` layers where the direction best
    separates states with and without the history; "2,4,5" edits these. `open_share`: with the cosine gate, the share of
    the tune questions that are steered: those that agree most with their users' directions. `front`: what stands in
    front of a history item, one of `fronts.FRONTS`; `centred`: without what all users have in common.
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
    front: str
    centred: bool

    @property
    def move(self) -> Move:
        """How far states move."""
        return Move(self.edit, self.site, self.alpha_personal, self.alpha_general)


@dataclass(frozen=True)
class Learned:
    """What steering takes from the tune users.

    `pooled` float32 [G, L, d]: the direction of each group at the L edited layers; `general` [L, d]; `norms` [L]; the
    gate's threshold; `clusters`: the groups, None where all users are one. `common` [2, L, d]: of directions and of
    states, None where nothing is taken out.
    """

    layers: tuple[int, ...]
    clusters: Clusters | None
    pooled: NDArray[np.float32]
    general: NDArray[np.float32]
    norms: NDArray[np.float32]
    threshold: float
    common: NDArray[np.float32] | None = None

    @property
    def commons(self) -> tuple[Common, ...] | None:
        """What is taken out at each layer."""
        return None if self.common is None else tuple(Common(*layer) for layer in self.common.transpose(1, 0, 2))

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the directions; what a deploy config says of them."""
        arrays = {"pooled": self.pooled, "general": self.general, "norms": self.norms}
        write_arrays(
            folder / "steering.safetensors", arrays if self.common is None else {**arrays, "common": self.common}
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


class Directions:
    """The directions of the questions of one data set.

    `kept`: directions by history, where those of earlier questions may be taken from and later ones find these.
    """

    def __init__(self, dataset: Dataset, reading: Reading, front: str = "others", kept: Kept | None = None) -> None:
        self.dataset, self.reading, self.front, self.kept = dataset, reading, front, kept
        self.depth = reading.depth
        self._pairs: dict[tuple[str, tuple[int, ...]], dict[Recent, list[Pairs]]] = {}
        self._own: dict[tuple[Any, ...], NDArray[np.float32]] = {}
        self._ccs: dict[tuple[str, int], NDArray[np.float32]] = {}
        self._separations: dict[tuple[str, str], NDArray[np.float64]] = {}
        self._clusters: dict[int, Clusters] = {}
        self._lengths: dict[str, int] = {}

    @cached_property
    def _recent(self) -> list[Recent]:
        """Of each question: the latest of what is known when it is asked, and the frame in which items are asked."""
        return [
            (self._laid_out(question), self.dataset.task.frame(question.text)) for question in self.dataset.questions
        ]

    def _laid_out(self, question: Question) -> History:
        """The items that stand in this question's row: the newest that fit, of two that do not the beginnings."""
        known, room = known_items(self.dataset.task, question), self.reading.room
        items = known[-(PAIRS if self.front == "others" else LONGEST) :]
        if self.reading.lengths is None or not items:
            return items
        texts = segments(self.front, self.dataset.task, question, items)
        if sum(len(text.encode()) for text in texts) <= room:
            return items
        items = items[-newest_that_fit(self._tokens(texts), room) :]
        while (size := sum(self._tokens(segments(self.front, self.dataset.task, question, items)))) > room:
            if not any(item.text for item in items):
                raise DataError(f"question {question.id}: its instruction alone does not fit the model's context")
            kept = SHORTER * room / size
            items = tuple(replace(item, text=item.text[: int(len(item.text) * kept)]) for item in items)
        return items

    def _tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        assert self.reading.lengths is not None
        new = [text for text in texts if text not in self._lengths]
        self._lengths.update(zip(new, self.reading.lengths(new), strict=True))
        return [self._lengths[text] for text in texts]

    @property
    def cut(self) -> int:
        """How many questions know more items than are laid out."""
        questions = zip(self._recent, self.dataset.questions, strict=True)
        return sum(len(recent[0]) < len(known_items(self.dataset.task, question)) for recent, question in questions)

    @cached_property
    def histories(self) -> dict[Recent, int]:
        """What is steered by, each with one of its questions."""
        return {recent: row for row, recent in enumerate(self._recent) if recent[0]}

    @cached_property
    def paired(self) -> list[Recent]:
        """Histories that tell a direction of their own: those of two items and more."""
        return [recent for recent in self.histories if len(recent[0]) > 1]

    @property
    def all_layers(self) -> tuple[int, ...]:
        """Every layer of the model."""
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
        rows: dict[Recent, range] = {}
        for recent in histories:
            row = self.histories[recent]
            given = (self.front, self.dataset.task, self.dataset.questions[row], recent[0])
            personal += personal_prompts(*given)
            neutral += neutral_prompts(*given)
            rows[recent] = range(len(owners), len(neutral))
            owners += [row] * len(rows[recent])
        states = self.reading.states([*personal, *neutral], np.array([*owners, *owners]), layers, site)
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
        common = self.common(settings.direction, settings.site, layers) if settings.centred else None
        own = self.own(settings.direction, settings.site, layers, common)
        clusters = self._grouped(settings.groups) if settings.groups > 1 else None
        count = 1 if clusters is None else len(clusters.centres)
        pooled = group_directions(own, self._groups(clusters, self.paired), count, settings.shrink)
        general = unit(self.own("mean_difference", settings.site, layers).mean(axis=0))
        if settings.general == "ccs":
            general = np.stack([self._consistent(settings.site, layer) for layer in layers])
        taken = None if common is None else np.stack([np.stack(layer) for layer in common], axis=1)
        return Learned(layers, clusters, pooled, general, self._norms(layers), PRODUCT_THRESHOLD, taken)

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

    def common(self, kind: str, site: str, layers: tuple[int, ...]) -> tuple[Common, ...]:
        """What these histories have in common at these layers."""
        return tuple(common_part(self.pairs(site, layers), kind))

    def own(
        self, kind: str, site: str, layers: tuple[int, ...], common: tuple[Common, ...] | None = None
    ) -> NDArray[np.float32]:
        """Each paired history's own direction at these layers, without what is common, float32 [U, L, d]."""
        taken = None if common is None else b"".join(part.tobytes() for layer in common for part in layer)
        key = (self.front, kind, site, layers, taken)
        if self.kept is not None:
            return self._remembered(key, common, self.kept)
        if key not in self._own:
            self._own[key] = personal_directions(self.pairs(site, layers), kind, common)
        return self._own[key]

    def _remembered(self, key: tuple[Any, ...], common: tuple[Common, ...] | None, kept: Kept) -> NDArray[np.float32]:
        """The same, with those of histories that nobody asked with before made now."""
        _, kind, site, layers, _ = key
        new = [recent for recent in self.paired if (recent, key) not in kept]
        if new:
            made = personal_directions(self._asked(new, site, layers), kind, common)
            kept.update({(recent, key): one for recent, one in zip(new, made, strict=True)})
        found = np.stack([kept[recent, key] for recent in self.paired])
        while len(kept) > REMEMBERED:
            kept.pop(next(iter(kept)))
        return found

    def _grouped(self, k: int) -> Clusters:
        if k not in self._clusters:
            self._clusters[k] = cluster("words", [items for items, _ in self.paired], (), self.reading.embed, k)
        return self._clusters[k]

    def _groups(self, clusters: Clusters | None, known: Sequence[Recent]) -> NDArray[np.int64]:
        """The group of each history, [U]."""
        if clusters is None:
            return np.zeros(len(known), dtype=np.int64)
        return clusters.assign(clusters.features([items for items, _ in known], self.reading.embed))

    def vectors(self, settings: Settings, learned: Learned) -> SteeringVectors:
        """The vectors of these histories, in the order of `histories`; one of zeros where there are none."""
        if not self.histories:
            nobody = np.zeros((1, *learned.general.shape), dtype=np.float32)
            return SteeringVectors(learned.layers, nobody, learned.general, learned.norms)
        everybody = list(self.histories)
        items = np.array([read_items(self.front, len(recent)) for recent, _ in everybody])
        own = np.zeros((len(everybody), *learned.general.shape), dtype=np.float32)
        if self.paired:
            own[items > 0] = self.own(settings.direction, settings.site, learned.layers, learned.commons)
        toward = learned.pooled[self._groups(learned.clusters, everybody)]
        personal = unit(shrunk(own, items, toward, settings.shrink))
        return SteeringVectors(learned.layers, personal, learned.general, learned.norms)

    def users(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The vectors of each question, and whether there are any."""
        index = {recent: i for i, recent in enumerate(self.histories)}
        found = np.array([index.get(recent, -1) for recent in self._recent], dtype=np.int64)
        return np.maximum(found, 0), found >= 0


def with_threshold(learned: Learned, values: NDArray[np.float64], open_share: float) -> Learned:
    """A gate that is open for this share of the tune questions, whose values these are, in whatever batch they come."""
    return replace(learned, threshold=float(np.quantile(values, 1 - open_share)) - ROUNDING)
