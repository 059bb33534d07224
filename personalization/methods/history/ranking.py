"""A user's history, ranked for each question, and what the ranking is good for.

Relevance r_i of item i, over what is known when the question is asked:

    similarity   cos(E(question), E(item)), E the embedding of the retriever, without one of the backbone
    bm25         BM25 of the item for the question's words over that history, as a share of its largest (Robertson and
                 Zaragoza 2009, in Lucene's form, by bm25s)
    mix          m * similarity + (1 - m) * bm25
    recency      equal for all; of equally relevant items the newer comes first

Two uses. The label prior of a question weights items by relevance and age (counted in items, 0 for the newest):

    w_i = exp((r_i - max r) / width) * 0.5 ** (age_i / half_life)
    n_y = n_eff * sum_{i: y_i = y} w_i / sum_i w_i,    n_eff = (sum w)^2 / sum w^2

n_y takes the place of the plain label counts, so that a prior from few relevant items shrinks as one of few items
does (n_eff is Kish's effective sample size); with endless width and half-life it is the plain count. The other use
puts the k most relevant items in front of the question. Cost: one embedding of each text, arithmetic for a prior, and
one scoring pass for each (k, ranking) in the prompt.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.data.known import known_items
from personalization.data.records import Dataset, HistoryItem
from personalization.methods.history.bm25 import bm25
from personalization.scoring.store import Progress

log = logging.getLogger(__name__)

RANKINGS = ("similarity", "bm25", "mix", "recency")
TOLD_FROM = 10
"""Questions with a history from which it is told that none shares a word with it."""

Floats = NDArray[np.floating]


def most_relevant(relevance: Floats, k: int) -> NDArray[np.intp]:
    """The k most relevant items [<= k], best first, of items given oldest first; of equals the newer comes first."""
    m = len(relevance)
    if k <= 0:
        return np.arange(0)
    if k >= m:
        candidates = np.arange(m)
    else:
        threshold = np.partition(relevance, m - k)[m - k]
        above = np.flatnonzero(relevance > threshold)
        equal = np.flatnonzero(relevance == threshold)
        candidates = np.concatenate([above, equal[len(equal) - (k - len(above)) :]])
    return candidates[np.lexsort((-candidates, -relevance[candidates]))]


class Histories:
    """The questions of one data set with their ranked histories.

    `weights` come as an object with `ranking`, `mix`, `width` and `half_life`.
    """

    def __init__(self, scorer: Any, dataset: Dataset, progress: Progress | None = None) -> None:
        self.scorer, self.dataset, self.progress = scorer, dataset, progress
        self.items = [known_items(dataset.task, q) for q in dataset.questions]
        self.asked = [dataset.task.query_of(q.text) for q in dataset.questions]
        self.starts = np.cumsum([0, *map(len, self.items)])

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """The question of each history item, int [M]; items of all questions stand in one row of arrays."""
        return np.repeat(np.arange(len(self.items)), np.diff(self.starts))

    @cached_property
    def documents(self) -> list[list[str]]:
        """What of each item is ranked, a list a question."""
        document = self.dataset.task.document_of
        return [[document(item) for item in items] for items in self.items]

    @cached_property
    def ages(self) -> NDArray[np.int64]:
        """0 for a question's newest item, int [M]."""
        return self.starts[1:][self.owners] - 1 - np.arange(len(self.owners))

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Column of each item's label, int [M]; -1 for one that is not a label of the task."""
        column = {label: i for i, label in enumerate(self.dataset.labels)}
        return np.array([column.get(item.label or "", -1) for items in self.items for item in items], dtype=np.int64)

    @cached_property
    def similarity(self) -> NDArray[np.float64]:
        """Cosine of question and item, [M]."""
        place: dict[str, int] = {}
        for text in (*self.asked, *(text for texts in self.documents for text in texts)):
            place.setdefault(text, len(place))
        embedded = self.scorer.embeddings(list(place), self.progress)
        out = np.empty(len(self.owners))
        for row in range(len(self.items)):
            rows = [place[text] for text in self.documents[row]]
            out[self.starts[row] : self.starts[row + 1]] = embedded[rows] @ embedded[place[self.asked[row]]]
        return out

    @cached_property
    def bm25(self) -> NDArray[np.float64]:
        """BM25 of the items, as a share of the question's largest, [M]."""
        out = np.zeros(len(self.owners))
        for row, items in enumerate(self.items):
            if items:
                found = bm25(self.asked[row], self.documents[row])
                out[self.starts[row] : self.starts[row + 1]] = found / (found.max() or 1.0)
        asked = sum(map(bool, self.items))
        if asked >= TOLD_FROM and not out.any():
            log.warning(
                "BM25 ranks nothing: none of %d questions shares a word with its history; items come newest first",
                asked,
            )
        return out

    def relevance(self, ranking: str, mix: float = 0.0) -> NDArray[np.float64]:
        """Relevance of every item, [M]."""
        if ranking == "recency":
            return np.zeros(len(self.owners))
        if ranking == "mix":
            return mix * self.similarity + (1 - mix) * self.bm25
        if ranking not in RANKINGS:
            raise ValueError(f"ranking must be one of {', '.join(RANKINGS)}, but got {ranking!r}")
        return self.bm25 if ranking == "bm25" else self.similarity

    def top(self, ranking: str, mix: float, k: int) -> list[list[HistoryItem]]:
        """The k most relevant items of each question, best first."""
        found = self.relevance(ranking, mix)
        parts = [found[self.starts[row] : self.starts[row + 1]] for row in range(len(self.items))]
        return [[items[i] for i in most_relevant(part, k)] for items, part in zip(self.items, parts, strict=True)]

    def counts(self, weights: Any) -> NDArray[np.float64]:
        """Weighted label counts of each question, float [n, K]; items without a label of the task do not count."""
        n, k = len(self.items), len(self.dataset.labels)
        relevance = self.relevance(weights.ranking, weights.mix)
        best = np.full(n, -np.inf)
        np.maximum.at(best, self.owners, relevance)
        near = np.exp((relevance - best[self.owners]) / weights.width)
        weight: NDArray[np.float64] = near * 0.5 ** (self.ages / weights.half_life)
        weight[self.labels < 0] = 0.0
        total = np.bincount(self.owners, weight, n)
        squares = np.bincount(self.owners, weight**2, n)
        cells = np.bincount(self.owners * k + np.maximum(self.labels, 0), weight, n * k).reshape(n, k)
        scale = np.divide(total, squares, out=np.zeros(n), where=squares > 0)
        return np.asarray(cells * scale[:, None], dtype=np.float64)
