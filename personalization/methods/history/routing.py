"""Which of several chains answers a question, by what is known of its user before any answer.

For every chain a beside the first one, the difference h_ai - h_0i in {-1, 0, 1} of being right on question i is
regressed on features x_i of the question's history, by ridge:

    m_a, w_a = argmin sum_i (h_ai - h_0i - m - w x_i)^2 + penalty |w|^2

The question goes to the chain with the largest m_a + w_a x above 0, else to the first. m is not penalised: the larger
the penalty, the nearer is the prediction to the mean difference, which is below 0 where the first chain is the best, so
that shrinkage is towards one chain for all. x: log(1 + items) and the share of the most frequent label, standardised on
the questions that were learned from. Cost: arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from personalization.data.known import known_items
from personalization.data.records import Dataset
from personalization.data.splits import user_blocks
from personalization.methods.taste.priors import history_counts

FOLDS = 5

Floats = NDArray[np.float64]


class Router(NamedTuple):
    """`means`, `spreads` [F]: of the features that were learned from; `gains` [A - 1] m, `weights` [A - 1, F] w."""

    means: Floats
    spreads: Floats
    gains: Floats
    weights: Floats

    def arms(self, told: Floats) -> NDArray[np.intp]:
        """The chain for each question, int [n]; `told` [n, F] of `features`."""
        gains = self.gains + (told - self.means) / self.spreads @ self.weights.T
        return np.asarray(np.column_stack([np.zeros(len(told)), gains]).argmax(axis=1), dtype=np.intp)


def features(dataset: Dataset) -> Floats:
    """Of each question's history, [n, 2]: log(1 + items), share of the most frequent label (0 without any)."""
    counts = history_counts(dataset)
    top = counts.max(axis=1, initial=0) / np.maximum(1, counts.sum(axis=1))
    length = np.array([len(known_items(dataset.task, question)) for question in dataset.questions], dtype=np.float64)
    return np.column_stack([np.log1p(length), top])


def learned(told: Floats, hits: NDArray[np.bool_], penalty: float) -> Router:
    """From features [n, F] and which chain was right, [A, n]; the first chain is the one to beat."""
    spread = told.std(axis=0)
    means, spreads = told.mean(axis=0), np.where(spread > 0, spread, 1.0)
    gains = hits[1:].astype(np.float64) - hits[0]
    model = Ridge(alpha=penalty).fit((told - means) / spreads, gains.T)
    return Router(means, spreads, np.reshape(model.intercept_, -1), model.coef_.reshape(len(gains), -1))


def held_out(told: Floats, hits: NDArray[np.bool_], users: Sequence[str], penalty: float) -> NDArray[np.intp]:
    """The chain for each question by what was learned from other users, int [n]; the first where there are none."""
    out = np.zeros(len(told), dtype=np.intp)
    for rows in user_blocks(users, FOLDS):
        others = np.setdiff1d(np.arange(len(told)), rows)
        if len(others):
            out[rows] = learned(told[others], hits[:, others], penalty).arms(told[rows])
    return out
