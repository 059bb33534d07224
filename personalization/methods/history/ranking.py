"""A user's history, ranked for each question, and what the ranking is good for.

Relevance r_i of item i, over what is known when the question is asked:

    similarity   cos(E(question), E(item)), E the backbone's embedding
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
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import bm25s
import numpy as np
import regex
from numpy.typing import NDArray

from personalization.backbones import SCALE
from personalization.data.known import known_items
from personalization.data.prompts import WORDINGS, continuations, item_text, prompt
from personalization.data.records import Dataset, HistoryItem
from personalization.methods.taste.calibration import Calibrated, PriorTables, calibrate

log = logging.getLogger(__name__)

RANKINGS = ("similarity", "bm25", "mix", "recency")
TOLD_FROM = 10
"""Questions with a history from which it is told that none shares a word with it."""
CALIBRATION = ("beta", "gamma", "kappa", "tau", "prior_mode", "source")

Floats = NDArray[np.floating]


_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}&&[\p{L}\p{M}\p{N}]]"
"""Letters and digits of scripts that put no spaces between words."""
_PIECES = regex.compile(rf"(?V1){_UNSPACED}+|[\p{{L}}\p{{M}}\p{{N}}_--{_UNSPACED}]+")
_HAS_UNSPACED = regex.compile(rf"(?V1){_UNSPACED}")
_LETTER = regex.compile(r".\p{M}*")


def words(text: str) -> list[str]:
    """The words of a text, as BM25 counts them: runs of letters with their marks, digits and underscores.

    Where a script puts no spaces between words, each two neighbouring letters are one.
    """
    text = unicodedata.normalize("NFC", text.lower())
    if text.isascii():
        return re.findall(r"\w+", text)
    return [word for piece in _PIECES.findall(text) for word in _words_of(piece)]


def _words_of(piece: str) -> list[str]:
    letters = _LETTER.findall(piece) if _HAS_UNSPACED.match(piece) else []
    return list(map("".join, pairwise(letters))) if len(letters) > 1 else [piece]


def bm25(query: str, corpus: Sequence[str]) -> NDArray[np.float64]:
    """BM25 of each text for the query's words, float [m]; zero without a common word."""
    tokens, wanted = [words(text) for text in corpus], words(query)
    if not {word for text in tokens for word in text} & set(wanted):
        return np.zeros(len(corpus))
    index = bm25s.BM25(method="lucene")
    index.index(tokens, show_progress=False)
    return np.asarray(index.get_scores(wanted), dtype=np.float64)


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

    Parameters come as an object with the fields of `search_spaces.retrieval.Params`.
    """

    def __init__(self, scorer: Any, dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> None:
        self.scorer, self.dataset, self.progress = scorer, dataset, progress
        self.items = [known_items(dataset.task, q) for q in dataset.questions]
        self.asked = [item_text(dataset.task, q) for q in dataset.questions]
        self.starts = np.cumsum([0, *map(len, self.items)])
        self.shortened: dict[tuple[Any, ...], int] = {}
        self._tables: dict[tuple[Any, ...], NDArray[np.float32]] = {}

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """The question of each history item, int [M]; items of all questions stand in one row of arrays."""
        return np.repeat(np.arange(len(self.items)), np.diff(self.starts))

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
        for text in (*self.asked, *(item.text for items in self.items for item in items)):
            place.setdefault(text, len(place))
        embedded = self.scorer.embeddings(list(place), self.progress)
        out = np.empty(len(self.owners))
        for row, items in enumerate(self.items):
            rows = [place[item.text] for item in items]
            out[self.starts[row] : self.starts[row + 1]] = embedded[rows] @ embedded[place[self.asked[row]]]
        return out

    @cached_property
    def bm25(self) -> NDArray[np.float64]:
        """BM25 of the items, as a share of the question's largest, [M]."""
        out = np.zeros(len(self.owners))
        for row, items in enumerate(self.items):
            if items:
                found = bm25(self.asked[row], [item.text for item in items])
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
        return {"similarity": self.similarity, "bm25": self.bm25}[ranking] if ranking in RANKINGS else _unknown(ranking)

    def top(self, ranking: str, mix: float, k: int) -> list[list[HistoryItem]]:
        """The k most relevant items of each question, best first."""
        found = self.relevance(ranking, mix)
        parts = [found[self.starts[row] : self.starts[row + 1]] for row in range(len(self.items))]
        return [[items[i] for i in most_relevant(part, k)] for items, part in zip(self.items, parts, strict=True)]

    def counts(self, params: Any) -> NDArray[np.float64]:
        """Weighted label counts of each question, float [n, K]; items without a label of the task do not count."""
        n, k = len(self.items), len(self.dataset.labels)
        relevance = self.relevance(params.ranking, params.mix)
        best = np.full(n, -np.inf)
        np.maximum.at(best, self.owners, relevance)
        near = np.exp((relevance - best[self.owners]) / params.width)
        weights: NDArray[np.float64] = near * 0.5 ** (self.ages / params.half_life)
        weights[self.labels < 0] = 0.0
        total = np.bincount(self.owners, weights, n)
        squares = np.bincount(self.owners, weights**2, n)
        cells = np.bincount(self.owners * k + np.maximum(self.labels, 0), weights, n * k).reshape(n, k)
        scale = np.divide(total, squares, out=np.zeros(n), where=squares > 0)
        return np.asarray(cells * scale[:, None], dtype=np.float64)

    def scores(self, params: Any) -> NDArray[np.float32]:
        """Scores float32 [n, K], with these items in the prompt, or this text for each label at this scale."""
        ranking, key = _ranking(params), self._key(params)
        if key not in self._tables:
            wording = WORDINGS[self.scorer.kind]
            template = params.template if self.scorer.kind == "encoder" else wording.template["continuation"]
            spoken = continuations(self.dataset.labels, template)
            if self.scorer.kind != "encoder" and params.k:
                prompts, self.shortened[key] = self.with_items(self.top(*ranking, params.k), spoken)
            else:
                prompts = [wording.prompt(self.dataset.task, q) for q in self.dataset.questions]
            self._tables[key] = self.scorer.label_logprobs(prompts, spoken, self.progress)
        return scaled(self._tables[key], params.scale)

    def prompts_shortened(self, params: Any) -> int:
        """How many prompts have items that were cut to fit the model."""
        self.scores(params)
        return self.shortened.get(self._key(params), 0)

    def _key(self, params: Any) -> tuple[Any, ...]:
        """What a table of scores depends on."""
        if self.scorer.kind == "encoder":
            return (params.template,)
        return (params.k, *_ranking(params)) if params.k else (0,)

    def with_items(self, chosen: Sequence[Sequence[HistoryItem]], spoken: Sequence[str]) -> tuple[list[str], int]:
        """Prompts with these items, each cut to its share of the room where they do not fit; and how many did not."""
        task, questions = self.dataset.task, self.dataset.questions
        whole = [prompt(task, q, items) for q, items in zip(questions, chosen, strict=True)]
        rows = self.scorer.too_long(whole, spoken)
        for row in rows:
            items = chosen[row]
            texts = self.scorer.shortened(prompt(task, questions[row]), [item.text for item in items], spoken)
            cut = [replace(item, text=text) for item, text in zip(items, texts, strict=True)]
            whole[row] = prompt(task, questions[row], cut)
        return whole, len(rows)


def _ranking(params: Any) -> tuple[str, float]:
    return params.ranking, params.mix if params.ranking == "mix" else 0.0


def retrieval_calibrate(
    scores: Floats, counts: NDArray[np.number[Any]], tables: PriorTables, **params: Any
) -> Calibrated:
    """`calibrate`, where the prior may be `similar`: `counts` are then the weighted ones."""
    own = {name: params[name] for name in CALIBRATION}
    if params["prior_mode"] != "similar":
        return calibrate(scores, counts, tables, **own)
    found = calibrate(scores, counts, tables, **own | {"prior_mode": "user"})
    return Calibrated(found.log_probs, ["similar" if mode == "user" else mode for mode in found.prior_modes])


def scaled(scores: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """An encoder's scores at another scale of its similarities, up to a constant a question."""
    return scores if scale == SCALE else scores * np.float32(scale / SCALE)


def _unknown(ranking: str) -> NDArray[np.float64]:
    raise ValueError(f"ranking must be one of {', '.join(RANKINGS)}, but got {ranking!r}")
