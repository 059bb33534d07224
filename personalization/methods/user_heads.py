"""From histories to logistic heads to scores: one head for all users, one for each group, or one for each user.

A head stands on what the backbone makes of an item: its embedding, or a causal model's state at some depth. Heads of
groups and users start from the head of all and are pulled towards it (`heads.fit_near`), so that few items move them
little. A user's own head is fitted when the user asks, on the history that comes with the question; a group's belongs
to the deployment.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from personalization.backbones.cached import CachedScorer
from personalization.data.prompts import WORDINGS
from personalization.data.records import Dataset
from personalization.data.splits import user_blocks
from personalization.errors import DataError
from personalization.files import sha256_of, write_atomic
from personalization.methods.clusters import Clusters, cluster, histories_of
from personalization.methods.heads import Head, fit_head, fit_near
from personalization.methods.labelled import labelled_items, needed

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
        labels = [about(dataset.task, dataset.questions[0], label) for label in dataset.labels]
        features, gold = self._asked(items, plan), _columns(items)
        base = fit_head(features, gold, self._of(labels, plan), plan.c)
        if plan.level != "cluster":
            return Heads(plan, base)
        histories = histories_of(dataset)
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
        own = self._own(dataset, heads)
        for user, rows in _rows_by_user(dataset).items():
            if user in own:
                out[rows] = own[user].log_probs(features[rows])
        return out

    def _own(self, dataset: Dataset, heads: Heads) -> dict[str, Head]:
        """user -> the head that is not that of all."""
        if heads.clusters is not None:
            return {user: heads.own[group] for user, group in self.assigned(dataset, heads).items()}
        if heads.plan.level != "user":
            return {}
        items = labelled_items(dataset)
        features, gold = self._asked(items, heads.plan), _columns(items)
        return {
            user: fit_near(heads.base, features[rows], gold[rows], heads.plan.c_own)
            for user, rows in _rows_by_user(items).items()
        }

    def assigned(self, dataset: Dataset, heads: Heads) -> dict[str, int]:
        """The group of each user, where there are groups."""
        if heads.clusters is None:
            return {}
        histories, embed = histories_of(dataset), self.scorer.embeddings
        groups = heads.clusters.assign(heads.clusters.features(list(histories.values()), embed)).tolist()
        return dict(zip(histories, groups, strict=True))

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


def _rows_by_user(dataset: Dataset) -> dict[str, list[int]]:
    """user -> the rows of that user's questions."""
    found: dict[str, list[int]] = {}
    for row, question in enumerate(dataset.questions):
        found.setdefault(question.user_id, []).append(row)
    return found


def _columns(items: Dataset) -> NDArray[np.int64]:
    """The column of each item's label."""
    column = {label: i for i, label in enumerate(items.labels)}
    return np.array([column[q.gold] for q in items.questions if q.gold is not None], dtype=np.int64)
