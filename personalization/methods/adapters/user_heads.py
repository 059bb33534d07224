"""From histories to logistic heads to scores: one head for all users, one for each group, or one for each user.

A head stands on what the backbone makes of an item: its embedding, or a causal model's state at some depth. Heads of
groups and users start from the head of all and are pulled towards it (`heads.fit_near`), so that few items move them
little. A user's own head is fitted when the user asks, on what is known then; a group's belongs to the deployment.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from personalization.backbones.cached import CachedScorer
from personalization.data.known import distinct, known_items, learned_histories
from personalization.data.prompts import WORDINGS, question_frame, usual
from personalization.data.records import Dataset
from personalization.data.splits import user_blocks
from personalization.errors import DataError
from personalization.files import sha256_of, write_atomic
from personalization.methods.adapters.heads import Head, fit_head, fit_near
from personalization.methods.history.clusters import Clusters, cluster
from personalization.methods.history.labelled import labelled_items, needed

KEPT = 16
"""Lists of prompts whose states stay in memory."""
FOLDS = 4
"""Parts of the tune users, for heads that are judged on users they did not learn from."""


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


class UserHeads:
    """Fits heads on the histories of data sets and scores questions with them. `folder`: where heads are saved."""

    def __init__(self, scorer: CachedScorer, folder: Path) -> None:
        self.scorer, self.folder = scorer, folder
        self._features: OrderedDict[tuple[Any, ...], NDArray[np.float32]] = OrderedDict()

    def learn(self, dataset: Dataset, plan: HeadPlan) -> Heads:
        """Fit on the labelled items of a data set's users."""
        items, about = needed(labelled_items(dataset)), WORDINGS[self.scorer.kind].about
        usually = usual(dataset.task, dataset.questions)
        labels = [about(dataset.task, usually, label) for label in dataset.labels]
        features, gold = self._asked(items, plan), _columns(items)
        base = fit_head(features, gold, self._of(labels, plan), plan.c)
        if plan.level != "cluster":
            return Heads(plan, base)
        histories = learned_histories(dataset)
        known, embed = list(histories.values()), self.scorer.embeddings
        clusters = cluster(plan.cluster_by, known, dataset.labels, embed, plan.groups)
        groups = dict(zip(histories, clusters.assign(clusters.features(known, embed)).tolist(), strict=True))
        of_item = np.array([groups[q.user_id] for q in items.questions])
        own = [
            fit_near(base, features[of_item == group], gold[of_item == group], plan.c_own)
            for group in range(len(clusters.centres))
        ]
        return Heads(plan, base, tuple(own), clusters)

    def crossed(self, dataset: Dataset, plan: HeadPlan) -> NDArray[np.float32]:
        """log p(label | question) by heads that did not learn from the question's user, float32 [n, K].

        The users are dealt into FOLDS; each fold is answered with the heads of the others, as a new user would be;
        where the others have no labelled items, with the heads of all.
        """
        blocks = user_blocks([q.user_id for q in dataset.questions], FOLDS)
        out = np.empty((len(dataset), len(dataset.labels)), dtype=np.float32)
        for rows in blocks:
            own = {dataset.questions[i].user_id for i in rows}
            others = dataset.of_users({q.user_id for q in dataset.questions} - own) if len(blocks) > 1 else dataset
            part = Dataset(dataset.task, dataset.labels, tuple(dataset.questions[i] for i in rows))
            learned_from = others if labelled_items(others).questions else dataset
            out[rows] = self.scores(part, self.learn(learned_from, plan))
        return out

    def scores(self, dataset: Dataset, heads: Heads) -> NDArray[np.float32]:
        """log p(label | question), float32 [n, K]."""
        features = self._asked(dataset, heads.plan)
        out = np.asarray(heads.base.log_probs(features), dtype=np.float32)
        for head, rows in self._own(dataset, heads):
            out[rows] = head.log_probs(features[rows])
        return out

    def _own(self, dataset: Dataset, heads: Heads) -> Iterator[tuple[Head, NDArray[np.int64]]]:
        """The heads that are not that of all, each with the questions [rows] that it answers."""
        if heads.clusters is not None:
            groups = self.assigned(dataset, heads)
            for group in np.unique(groups):
                yield heads.own[group], np.flatnonzero(groups == group)
        elif heads.plan.level == "user":
            yield from self._of_histories(dataset, heads)

    def _of_histories(self, dataset: Dataset, heads: Heads) -> Iterator[tuple[Head, NDArray[np.int64]]]:
        """One head for each history, fitted on what is known when its questions are asked."""
        rows_of: dict[tuple[int, str], list[int]] = {}
        histories, places = distinct([known_items(dataset.task, q) for q in dataset.questions])
        for row, (question, place) in enumerate(zip(dataset.questions, places, strict=True)):
            rows_of.setdefault((place, question_frame(dataset.task, question.text)), []).append(row)
        column = {label: i for i, label in enumerate(dataset.labels)}
        about, found = WORDINGS[self.scorer.kind].about, []
        for (place, _), rows in rows_of.items():
            items = [item for item in histories[place] if item.label in column]
            asked = dataset.questions[rows[0]]
            prompts = [about(dataset.task, asked, item.text) for item in items]
            found.append((rows, prompts, [column[item.label] for item in items if item.label is not None]))
        once = {prompt: i for i, prompt in enumerate(dict.fromkeys(p for _, prompts, _ in found for p in prompts))}
        features = self._of(list(once), heads.plan) if once else np.empty((0, 0), dtype=np.float32)
        for rows, prompts, gold in found:
            if prompts:
                own = features[[once[prompt] for prompt in prompts]]
                head = fit_near(heads.base, own, np.array(gold, dtype=np.int64), heads.plan.c_own)
                yield head, np.array(rows, dtype=np.int64)

    def assigned(self, dataset: Dataset, heads: Heads) -> NDArray[np.int64]:
        """The group of each question, [n], by what is known when it is asked; -1 where there are no groups."""
        if heads.clusters is None or not dataset.questions:
            return np.full(len(dataset), -1, dtype=np.int64)
        return heads.clusters.of_questions(dataset, self.scorer.embeddings)

    def save(self, heads: Heads) -> dict[str, Any]:
        """Write the heads under their content; what a deploy config says of them."""
        arrays = {
            f"{number}.{name}": array
            for number, head in enumerate((heads.base, *heads.own))
            for name, array in head.arrays().items()
        }
        content = safetensors.numpy.save(arrays)
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"head-{digest[:32]}.safetensors"
        write_atomic(path, content)
        clusters = None if heads.clusters is None else heads.clusters.listed()
        return {"file": str(path.resolve()), "sha256": digest, "plan": asdict(heads.plan), "clusters": clusters}

    def _asked(self, dataset: Dataset, plan: HeadPlan) -> NDArray[np.float32]:
        prompt = WORDINGS[self.scorer.kind].prompt
        return self._of([prompt(dataset.task, q) for q in dataset.questions], plan)

    def _of(self, prompts: Sequence[str], plan: HeadPlan) -> NDArray[np.float32]:
        encoder = self.scorer.kind == "encoder"
        depth = 1 if encoder else self.scorer.backbone.depth
        layer = min(int(plan.depth * depth), depth - 1)
        key = (layer, *prompts)
        if key not in self._features:
            embed = self.scorer.embeddings
            self._features[key] = embed(prompts) if encoder else self.scorer.last_states(prompts)[:, layer].copy()
            if len(self._features) > KEPT:
                self._features.popitem(last=False)
        return self._features[key]


def load_heads(listed: Mapping[str, Any]) -> Heads:
    """The heads that a deploy config names; DataError where they are not those."""
    path = Path(listed["file"])
    if not path.is_file() or sha256_of(path) != listed["sha256"]:
        raise DataError(f"{path}: the head of this config is missing or changed; restore it or promote again")
    arrays = safetensors.numpy.load(path.read_bytes())
    parts: dict[int, dict[str, NDArray[np.float32]]] = {}
    for name, array in arrays.items():
        number, _, field = name.partition(".")
        parts.setdefault(int(number), {})[field] = array
    base, *own = (Head(**parts[number]) for number in sorted(parts))
    clusters = None if listed["clusters"] is None else Clusters.from_listed(listed["clusters"])
    return Heads(HeadPlan(**listed["plan"]), base, tuple(own), clusters)


def _columns(items: Dataset) -> NDArray[np.int64]:
    """The column of each item's label."""
    column = {label: i for i, label in enumerate(items.labels)}
    return np.array([column[q.gold] for q in items.questions if q.gold is not None], dtype=np.int64)
