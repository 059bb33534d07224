"""What other users made of similar items: a prior for a question from the pooled histories of the tune users.

For a question of user u, over the items i of all other users v that may be known (where both are dated, none that is
later than the question),

    n_y = sum_{i: y_i = y} exp((r_i - 1) / near) * t(u, v_i)^kin     over the MOST most relevant items with r_i >= floor

r_i is the cosine of question and item: of the embeddings of an encoder or a retriever, else of TF-IDF vectors of their
words (Salton and Buckley 1988). Cosines that differ by TIE or less are equal: items as relevant as the last that counts
share the places that are left. t is how alike two users' tastes are, the
Bhattacharyya coefficient sum_y sqrt(p_u(y) p_v(y)) of their label shares, each with one pseudo-count spread over the
labels; with `kin` 0 all users count alike. The asked user's own items never count here: they are the user's own prior.

Cost: a product of questions and items. A deployment holds the items' texts, or their embeddings, and their labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.data.dates import EPOCH
from personalization.data.known import learned_histories
from personalization.data.records import Dataset
from personalization.errors import DataError
from personalization.files import write_arrays, write_atomic
from personalization.methods.history.bm25 import words
from personalization.methods.history.clusters import Embed
from personalization.methods.taste.priors import history_counts

MOST = 32
"""Items that answer a question at most."""
TIE = 1e-5
"""By how much a cosine may differ by what else is asked."""
AT_ONCE = 20_000_000
"""Cosines that are in memory at once."""
ARRAYS, TEXTS = "pool.safetensors", "pool.json"


@dataclass(frozen=True)
class Pool:
    """Labelled items of many users. `texts` [M]; `embedded` [M, d] of an encoder, else None; `labels` [M]; `days` [M]:
    when, in seconds, NaN where unknown; `owners` [M]: rows of `users`, digests of their ids; `tastes` [U, K]: label
    counts."""

    texts: tuple[str, ...]
    embedded: NDArray[np.float32] | None
    labels: NDArray[np.int64]
    days: NDArray[np.float64]
    owners: NDArray[np.int64]
    users: tuple[str, ...]
    tastes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bytes(self) -> int:
        """What a deployment holds of it."""
        held = 0 if self.embedded is None else self.embedded.nbytes
        told = sum(len(text.encode()) for text in self.texts) if self.embedded is None else 0
        return held + told + self.labels.nbytes + self.days.nbytes + self.owners.nbytes + self.tastes.nbytes

    @cached_property
    def _words(self) -> tuple[Any, Any]:
        """(vectoriser, TF-IDF of the items [M, W])."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(analyzer=words)
        return vectoriser, vectoriser.fit_transform(self.texts)

    def counts(self, dataset: Dataset, embed: Embed, params: Any) -> NDArray[np.float64]:
        """What others' similar items count for each label of each question, float [n, K]; params with `floor`, `near`
        and `kin`."""
        n, k = len(dataset), len(dataset.labels)
        out = np.zeros((n, k))
        if not len(self) or not n:
            return out
        asked = [dataset.task.query_of(question.text) for question in dataset.questions]
        own = history_counts(dataset)
        rows = max(1, AT_ONCE // len(self))
        for start in range(0, n, rows):
            some = slice(start, start + rows)
            near = self._cosines(asked[some], embed)
            self._forbid(near, dataset.questions[some])
            for row, cosines in enumerate(near):
                out[start + row] = self._counted(cosines, own[start + row], params)
        return out

    def _cosines(self, asked: Sequence[str], embed: Embed) -> NDArray[np.float64]:
        """Of questions and items, [m, M]."""
        if self.embedded is not None:
            return np.asarray(embed(asked) @ self.embedded.T, dtype=np.float64)
        vectoriser, known = self._words
        return np.asarray((vectoriser.transform(asked) @ known.T).toarray(), dtype=np.float64)

    def _forbid(self, near: NDArray[np.float64], questions: Sequence[Any]) -> None:
        """Take out the asked users' own items, and what is later than a question."""
        place = {user: row for row, user in enumerate(self.users)}
        for row, question in enumerate(questions):
            mine = place.get(digest(question.user_id))
            if mine is not None:
                near[row, self.owners == mine] = -np.inf
            if question.date is not None:
                near[row, self.days > seconds(question.date)] = -np.inf

    def _counted(self, cosines: NDArray[np.float64], own: NDArray[np.int64], params: Any) -> NDArray[np.float64]:
        """[K] of one question."""
        k = self.tastes.shape[1]
        found = np.flatnonzero(cosines >= params.floor - TIE)
        share = np.ones(len(found))
        if len(found) > MOST:
            above = cosines[found] - np.partition(cosines[found], -MOST)[-MOST]
            share = np.where(above > TIE, 1.0, (MOST - (above > TIE).sum()) / (np.abs(above) <= TIE).sum())
            found, share = found[above >= -TIE], share[above >= -TIE]
        weight = share * np.exp((np.minimum(cosines[found], 1.0) - 1) / params.near)
        if params.kin:
            theirs = self.tastes[self.owners[found]]
            weight = weight * alike(own[None, :], theirs)[0] ** params.kin
        return np.asarray(np.bincount(self.labels[found], weight, k), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write it into a folder; the texts only where they are needed."""
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in ("labels", "days", "owners", "tastes")}
        if self.embedded is not None:
            arrays["embedded"] = self.embedded
        write_arrays(folder / ARRAYS, arrays)
        told = {"users": self.users, "texts": self.texts if self.embedded is None else None}
        write_atomic(folder / TEXTS, json.dumps(told, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> Pool:
        """What `save` wrote; DataError where the files do not belong together."""
        from safetensors.numpy import load_file

        arrays, told = load_file(folder / ARRAYS), json.loads((folder / TEXTS).read_text(encoding="utf-8"))
        embedded, texts = arrays.get("embedded"), told["texts"]
        if embedded is None and len(texts or ()) != len(arrays["labels"]):
            raise DataError(f"{folder / TEXTS}: {len(texts or ())} texts for {len(arrays['labels'])} items")
        held = {name: arrays[name] for name in ("labels", "days", "owners", "tastes")}
        return cls(tuple(texts or ()), embedded, users=tuple(told["users"]), **held)


def pooled(dataset: Dataset, kind: str, embed: Embed) -> Pool:
    """The labelled items of all users of a data set, each user's longest known history; no question's label is read."""
    column = {label: i for i, label in enumerate(dataset.labels)}
    histories = learned_histories(dataset)
    items = [(row, item) for row, history in enumerate(histories.values()) for item in history if item.label in column]
    texts = tuple(dataset.task.document_of(item) for _, item in items)
    owners = np.array([row for row, _ in items], dtype=np.int64)
    labels = np.array([column[str(item.label)] for _, item in items], dtype=np.int64)
    days = np.array([np.nan if item.date is None else seconds(item.date) for _, item in items])
    tastes = np.zeros((len(histories), len(dataset.labels)), dtype=np.int64)
    np.add.at(tastes, (owners, labels), 1)
    embedded = embed(texts) if kind == "encoder" and texts else None
    return Pool(texts, embedded, labels, days, owners, tuple(map(digest, histories)), tastes)


def alike(one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.float64]:
    """Bhattacharyya coefficients of label counts [a, K] and [b, K], float [a, b] from 0 to 1."""
    shares = [(counts + 1 / counts.shape[1]) / (counts.sum(axis=1, keepdims=True) + 1) for counts in (one, other)]
    return np.asarray(np.sqrt(shares[0]) @ np.sqrt(shares[1]).T)


def seconds(date: datetime) -> float:
    """Of a date in UTC since 1970."""
    return (date - EPOCH).total_seconds()


def digest(user: str) -> str:
    """A user, without the name."""
    return hashlib.sha256(user.encode()).hexdigest()[:16]
