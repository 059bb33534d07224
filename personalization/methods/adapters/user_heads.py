"""From histories to logistic heads to scores: one head for all users, one for each group, or one for each user.

A head stands on what the backbone makes of an item: its embedding, or a causal model's state at some depth. Items are
asked as questions are. Heads of groups and users start from the head of all and are pulled towards it
(`heads.fit_near`), so that few items move them little. A user's own head is fitted when the user asks, on what is known
then; a group's belongs to the deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.data.known import distinct, known_items, learned_histories
from personalization.data.prompts import usual
from personalization.data.records import Dataset, Question
from personalization.data.splits import user_blocks
from personalization.files import write_arrays
from personalization.methods.adapters.heads import Head, fit_head, fit_near
from personalization.methods.history.asking import Asking
from personalization.methods.history.clusters import Clusters, grouped
from personalization.methods.history.labelled import labelled_items, needed, others

FOLDS = 4
"""Parts of the tune users, for heads that are judged on users they did not learn from."""
Represent = Callable[[Sequence[str], NDArray[np.int64] | None], NDArray[np.float32]]
"""(prompts [m], the question that each belongs to [m], or None for prompts of nobody) -> representations [m, d]."""


@dataclass(frozen=True)
class HeadPlan:
    """What to fit: `c` of the head of all, `c_own` of a group's or user's distance to it; `depth` of a causal model."""

    level: str = "unified"
    groups: int = 4
    cluster_by: str = "words"
    c: float = 0.01
    c_own: float = 0.01
    depth: float = 0.0


@dataclass(frozen=True)
class Heads:
    """The head of all users, and at level `cluster` those of the groups."""

    plan: HeadPlan
    base: Head
    own: tuple[Head, ...] = ()
    clusters: Clusters | None = None

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the heads; what a deploy config says of them."""
        heads = (self.base, *self.own)
        arrays = {f"{n}.{name}": array for n, head in enumerate(heads) for name, array in head.arrays().items()}
        write_arrays(folder / "head.safetensors", arrays)
        groups = None if self.clusters is None else self.clusters.save(folder / "head_groups.safetensors")
        return {"groups_of_users": len(self.own), "clusters": groups}

    @classmethod
    def load(cls, plan: HeadPlan, listed: Mapping[str, Any], folder: Path) -> Heads:
        """What `save` wrote."""
        from safetensors.numpy import load_file

        clusters = None if listed["clusters"] is None else Clusters.load(folder / listed["clusters"])
        return cls.of_arrays(plan, load_file(folder / "head.safetensors"), clusters)

    @classmethod
    def of_arrays(cls, plan: HeadPlan, arrays: Mapping[str, NDArray[Any]], clusters: Clusters | None) -> Heads:
        """Heads from arrays by "number.name", the head of all first."""
        parts: dict[int, dict[str, NDArray[np.float32]]] = {}
        for name, array in arrays.items():
            number, _, field = name.partition(".")
            parts.setdefault(int(number), {})[field] = array
        base, *own = (Head(**parts[number]) for number in sorted(parts))
        return cls(plan, base, tuple(own), clusters)


class UserHeads:
    """Fits heads on the histories of a data set's users and scores its questions with heads.

    `represent` runs the model; `prompts` are those of the questions; `moved` bool [n, E]: which edits of the model
    move which question.
    """

    def __init__(
        self,
        dataset: Dataset,
        asking: Asking,
        scorer: Any,
        represent: Represent,
        prompts: Sequence[str],
        moved: NDArray[np.bool_],
    ) -> None:
        self.dataset, self.asking, self.scorer, self.represent = dataset, asking, scorer, represent
        self.prompts, self.moved = prompts, moved
        self.column = {label: i for i, label in enumerate(dataset.labels)}

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """Of the questions, [n, d]."""
        return self.represent(self.prompts, np.arange(len(self.prompts)))

    @cached_property
    def items(self) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
        """(representations [m, d], labels [m], users [m]) of the labelled items of all users."""
        found = needed(labelled_items(self.dataset))
        owner = {question.user_id: row for row, question in enumerate(self.dataset.questions)}
        prompts, _ = self.asking.prompts(self.scorer, found)
        users = [q.user_id for q in found.questions]
        features = self.represent(prompts, np.array([owner[user] for user in users]))
        return features, np.array([self.column[q.gold] for q in found.questions if q.gold is not None]), users

    @cached_property
    def label_features(self) -> NDArray[np.float32]:
        """Of the labels' own texts, [K, d]."""
        asked = usual(self.dataset.task, self.dataset.questions)
        return self.represent(self.asking.about(self.scorer, self.dataset, asked, self.dataset.labels), None)

    def learn(self, plan: HeadPlan, users: Collection[str] | None = None) -> Heads:
        """Fit on the labelled items of the users, or of these."""
        features, gold, owners = self.items
        if users is not None:
            mine = np.array([owner in users for owner in owners], dtype=np.bool_)
            features, gold, owners = features[mine], gold[mine], [o for o in owners if o in users]
        base = fit_head(features, gold, self.label_features, plan.c)
        if plan.level != "cluster":
            return Heads(plan, base)
        dataset = self.dataset if users is None else self.dataset.of_users(users)
        histories, embed = learned_histories(dataset), self.scorer.embeddings
        clusters, groups = grouped(plan.cluster_by, histories, dataset.labels, embed, plan.groups)
        of_item = np.array([groups[owner] for owner in owners])
        own = [
            fit_near(base, features[of_item == group], gold[of_item == group], plan.c_own)
            for group in range(len(clusters.centres))
        ]
        return Heads(plan, base, tuple(own), clusters)

    def crossed(self, plan: HeadPlan) -> NDArray[np.float32]:
        """log p(label | question) by heads that did not learn from the question's user, float32 [n, K].

        The users are dealt into FOLDS; each fold is answered with the heads of the others, as a new user would be;
        where the others have no labelled items, with the heads of all.
        """
        users = [q.user_id for q in self.dataset.questions]
        blocks, with_items = user_blocks(users, FOLDS), set(self.items[2])
        out = np.empty((len(users), len(self.dataset.labels)), dtype=np.float32)
        for rows in blocks:
            learned_from = set(users) - {users[row] for row in rows}
            heads = self.learn(plan, learned_from if learned_from & with_items else None)
            out[rows] = self.scores(heads, rows)
        return out

    def scores(self, heads: Heads, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """log p(label | question) of the questions, or of these, float32 [n, K]."""
        rows = np.arange(len(self.dataset)) if rows is None else rows
        out = np.empty((len(self.dataset), len(self.dataset.labels)), dtype=np.float32)
        out[rows] = heads.base.log_probs(self.features[rows])
        for head, own in self._own(heads, rows):
            out[own] = head.log_probs(self.features[own])
        return out[rows]

    def _own(self, heads: Heads, rows: NDArray[np.int64]) -> Iterator[tuple[Head, NDArray[np.int64]]]:
        """The heads that are not that of all, each with the questions [rows] that it answers."""
        if heads.clusters is not None:
            groups = self.assigned(heads)[rows]
            for group in np.unique(groups):
                yield heads.own[group], rows[groups == group]
        elif heads.plan.level == "user":
            yield from self._of_histories(heads, rows)

    @cached_property
    def _known(self) -> list[tuple[list[int], NDArray[np.float32], NDArray[np.int64]]]:
        """(questions, representations of what is known when they are asked, its labels), for each user, history, frame
        and edits that act."""
        task = self.dataset.task
        rows_of: dict[tuple[Any, ...], list[int]] = {}
        histories, places = distinct([known_items(task, q) for q in self.dataset.questions])
        for row, (question, place) in enumerate(zip(self.dataset.questions, places, strict=True)):
            key = (place, question.user_id, task.frame(question.text), self.moved[row].tobytes())
            rows_of.setdefault(key, []).append(row)
        asked: list[Question] = []
        found = []
        for (place, *_), rows in rows_of.items():
            items, frame = histories[place], self.dataset.questions[rows[0]]
            known = [
                Question(item.id, frame.user_id, task.about(frame.text, item.text), others(items, at), item.label)
                for at, item in enumerate(items)
                if item.label in self.column
            ]
            found.append((rows, len(asked), len(known)))
            asked += known
        prompts, _ = self.asking.prompts(self.scorer, Dataset(task, self.dataset.labels, tuple(asked)))
        owners = np.array([rows[0] for rows, _, count in found for _ in range(count)], dtype=np.int64)
        features = self._represented(prompts, owners)
        gold = np.array([self.column[q.gold] for q in asked if q.gold is not None], dtype=np.int64)
        return [(rows, features[start : start + count], gold[start : start + count]) for rows, start, count in found]

    def _represented(self, prompts: Sequence[str], owners: NDArray[np.int64]) -> NDArray[np.float32]:
        """Each distinct (prompt, question) once."""
        if not prompts:
            return np.empty((0, 0), dtype=np.float32)
        place: dict[tuple[str, int], int] = {}
        for key in zip(prompts, owners.tolist(), strict=True):
            place.setdefault(key, len(place))
        once = self.represent([prompt for prompt, _ in place], np.array([owner for _, owner in place]))
        return once[[place[key] for key in zip(prompts, owners.tolist(), strict=True)]]

    def _of_histories(self, heads: Heads, wanted: NDArray[np.int64]) -> Iterator[tuple[Head, NDArray[np.int64]]]:
        """One head for each history, fitted on what is known when its questions are asked."""
        chosen = set(wanted.tolist())
        for rows, features, gold in self._known:
            mine = [row for row in rows if row in chosen]
            if mine and len(gold):
                yield fit_near(heads.base, features, gold, heads.plan.c_own), np.array(mine, dtype=np.int64)

    def assigned(self, heads: Heads) -> NDArray[np.int64]:
        """The group of each question, [n], by what is known when it is asked; -1 where there are no groups."""
        if heads.clusters is None or not self.dataset.questions:
            return np.full(len(self.dataset), -1, dtype=np.int64)
        return heads.clusters.of_questions(self.dataset, self.scorer.embeddings)
