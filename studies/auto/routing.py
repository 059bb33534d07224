"""Would it pay to answer some users by another arm? Learned from what is known before any answer, and cross-fitted.

For every arm beside the best one, the difference of a user's gains is regressed on features of the user (how long and
how concentrated the history is, how often the arms agree), by ridge with the constant penalised, too: with little to
learn from, all users keep the best arm. A user is answered by the arm of the largest predicted difference above 0, as
predicted from the other folds of users. Which arm is the best is told by the other folds, too: an arm that was chosen
on a user is too good there, and whatever takes its place would seem to lose. So the gain is of users that the rule did
not learn from. Its interval is Student's, over the users who are sent elsewhere (all others change
nothing), and wider by sqrt(1 + K / (K - 1)), since rules of K folds learn from one another's users (Nadeau and Bengio
2003).

The rule of picking for each user whichever arm did better on the same questions is `oracle` in the table: it looks at
the answers, promises a gain where there is none, and cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from personalization.data.known import known_items
from personalization.data.records import Dataset
from personalization.evaluation import Evaluation
from personalization.methods.taste.priors import history_counts
from tracking.significance import difference

FOLDS = 5
CORRELATED = sqrt(1 + FOLDS / (FOLDS - 1))
"""How much wider an interval over folds is than one over users that no rule learned from."""
PENALTIES = np.logspace(0, 4, 9)


class Routed(NamedTuple):
    """What routing would gain a question over one arm for all, and the share of users that it sends elsewhere."""

    gain: float
    interval: tuple[float, float]
    moved: float


def features(dataset: Dataset, users: Sequence[str], answers: Sequence[Evaluation]) -> NDArray[np.float64]:
    """Of each user [U, 4]: constant, log of the longest history, share of its most frequent label, how often the arms
    agree with the first one. All standardised but the constant."""
    longest = dict.fromkeys(users, 0)
    for question in dataset.questions:
        if question.user_id in longest:
            longest[question.user_id] = max(longest[question.user_id], len(known_items(dataset.task, question)))
    counts = history_counts(dataset)
    top = counts.max(axis=1) / np.maximum(1, counts.sum(axis=1))
    peak = {question.user_id: share for question, share in zip(dataset.questions, top, strict=True)}
    first, *others = answers
    same = (
        np.mean([first.predicted == other.predicted for other in others], axis=0)
        if others
        else np.ones(len(first.gold))
    )
    names, rows = first.users
    agree = dict(zip(names, np.bincount(rows, same) / np.bincount(rows), strict=True))
    told = np.array([[np.log1p(longest[user]), peak.get(user, 0.0), agree.get(user, 1.0)] for user in users])
    spread = told.std(axis=0)
    told = (told - told.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return np.column_stack([np.ones(len(users)), told])


def routed(gains: NDArray[np.float64], sizes: NDArray[np.integer], told: NDArray[np.float64]) -> Routed:
    """From gains of arms summed by user [A, U] and features [U, F]."""
    arms, users = gains.shape
    fold = np.arange(users) % FOLDS
    one, picked, moved = (np.zeros(users) for _ in range(3))
    for number in range(FOLDS):
        learn, ask = fold != number, fold == number
        best = int(gains[:, learn].sum(axis=1).argmax())
        predicted = np.zeros((arms, int(ask.sum())))
        for arm in range(arms):
            if arm != best and ask.any() and learn.sum() > told.shape[1]:
                target = (gains[arm, learn] - gains[best, learn]) / sizes[learn]
                model = RidgeCV(PENALTIES, fit_intercept=False).fit(told[learn], target, sizes[learn])
                predicted[arm] = model.predict(told[ask])
        chosen = np.where(predicted.max(axis=0) > 0, predicted.argmax(axis=0), best)
        one[ask], picked[ask], moved[ask] = gains[best, ask], gains[chosen, np.flatnonzero(ask)], chosen != best
    sent = moved > 0
    share, most = float(sizes[sent].sum() / sizes.sum()), 1.0
    gain, error = difference(picked[sent], one[sent], sizes[sent])
    wide = CORRELATED * float(scipy.stats.t.ppf(0.975, max(1, int(sent.sum()) - 1)))
    reach = wide * error if sent.any() else 0.0
    low, high = max(-most, gain - reach), min(most, gain + reach)
    return Routed(share * gain, (share * low, share * high), float(moved.mean()))
