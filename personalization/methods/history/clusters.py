"""Users into groups, by their histories.

A user is one of:

    words       square roots of the shares of the words in the history's items (Euclidean distance is then Hellinger's)
    labels      square roots of the shares of the labels: what the user likes
    embedding   the mean embedding of the history's items

k-means on it, the best of several starts. A new user goes to the nearest centre. The silhouette is shown; how many
groups there are is chosen by what they are for, not by it. Cost: seconds for thousands of users.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from personalization.data.known import History, distinct, known_items
from personalization.data.records import Dataset
from personalization.files import write_arrays
from personalization.methods.history.bm25 import words

Floats = NDArray[np.floating]
Embed = Callable[[Sequence[str]], NDArray[np.float32]]

VOCABULARY = 2000
"""Words that count: those that most users have."""
STARTS = 10


@dataclass(frozen=True)
class Clusters:
    """Groups of users: `terms` that features count (words or labels), `centres` float32 [k, d], their silhouette."""

    kind: str
    terms: tuple[str, ...]
    centres: NDArray[np.float32]
    silhouette: float

    def features(self, histories: Sequence[History], embed: Embed) -> NDArray[np.float64]:
        """The users' features [U, d]."""
        return _features(self.kind, self.terms, histories, embed)

    def assign(self, features: Floats) -> NDArray[np.int64]:
        """The group of users [U, d]: the nearest centre."""
        squares = (self.centres.astype(np.float64) ** 2).sum(axis=1)
        return np.asarray((squares - 2 * features @ self.centres.T).argmin(axis=1), dtype=np.int64)

    def of_questions(self, dataset: Dataset, embed: Embed) -> NDArray[np.int64]:
        """The group of each question, [n], by what is known when it is asked; there must be a question."""
        histories, places = distinct([known_items(dataset.task, q) for q in dataset.questions])
        return self.assign(self.features(histories, embed))[places]

    def plane(self, features: Floats) -> NDArray[np.float64]:
        """Users' features [U, d] on the two axes along which these users differ most, [U, 2] (PCA)."""
        from sklearn.decomposition import PCA

        axes = min(2, *features.shape)
        placed = PCA(axes).fit_transform(features)
        return np.pad(placed, ((0, 0), (0, 2 - axes)))

    def save(self, path: Path) -> str:
        """Write centres, and what they count in the header; the file's name."""
        told = {"kind": self.kind, "terms": json.dumps(self.terms), "silhouette": repr(self.silhouette)}
        write_arrays(path, {"centres": self.centres}, told)
        return path.name

    @classmethod
    def load(cls, path: Path) -> Clusters:
        """What `save` wrote."""
        with safe_open(path, framework="numpy") as file:
            told, centres = file.metadata(), file.get_tensor("centres")
        return cls(told["kind"], tuple(json.loads(told["terms"])), centres, float(told["silhouette"]))


def cluster(kind: str, histories: Sequence[History], labels: Sequence[str], embed: Embed, k: int) -> Clusters:
    """k groups of users; as many as there are different users, where those are fewer."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    terms = {"words": _vocabulary(histories), "labels": tuple(labels), "embedding": ()}[kind]
    features = _features(kind, terms, histories, embed)
    if not features.shape[1]:  # no words at all
        return Clusters(kind, terms, np.zeros((1, 0), dtype=np.float32), 0.0)
    k = max(1, min(k, len(np.unique(features, axis=0))))
    found = KMeans(n_clusters=k, n_init=STARTS, random_state=0).fit(features)
    shown = silhouette_score(features, found.labels_) if 1 < k < len(features) else 0.0
    return Clusters(kind, terms, np.asarray(found.cluster_centers_, dtype=np.float32), float(shown))


def grouped(
    kind: str, histories: Mapping[str, History], labels: Sequence[str], embed: Embed, k: int
) -> tuple[Clusters, dict[str, int]]:
    """k groups of users by name, and the group of each."""
    known = list(histories.values())
    clusters = cluster(kind, known, labels, embed, k)
    numbers = clusters.assign(clusters.features(known, embed)).tolist()
    return clusters, dict(zip(histories, numbers, strict=True))


def _vocabulary(histories: Sequence[History]) -> tuple[str, ...]:
    users = Counter(word for items in histories for word in {w for item in items for w in words(item.text)})
    return tuple(word for word, _ in sorted(users.items(), key=lambda entry: (-entry[1], entry[0]))[:VOCABULARY])


def _features(kind: str, terms: Sequence[str], histories: Sequence[History], embed: Embed) -> NDArray[np.float64]:
    if kind == "embedding":
        texts = list(dict.fromkeys(item.text for items in histories for item in items))
        place = {text: row for row, text in enumerate(texts)}
        found = embed(texts or [""])  # nobody has a history: zeros of the right width
        return np.stack(
            [found[[place[i.text] for i in items]].mean(axis=0) if items else 0 * found[0] for items in histories]
        ).astype(np.float64)
    column = {term: i for i, term in enumerate(terms)}
    counts = np.zeros((len(histories), len(terms)))
    for row, items in enumerate(histories):
        for item in items:
            for term in words(item.text) if kind == "words" else [item.label or ""]:
                if term in column:
                    counts[row, column[term]] += 1
    return np.asarray(np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)))
