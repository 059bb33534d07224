"""A multinomial logistic head on frozen representations: the cheapest adapter, and the one to beat.

    p(y | x) = softmax_y (w_y . phi(x) + b_y),    phi the representation, each feature at mean 0 and variance 1

fitted by maximum likelihood with an L2 penalty 1 / (2 C) ||w||^2 (scikit-learn, L-BFGS). The text of each label is one
more example of it, so that every label is known and what the backbone knows of label texts is a beginning. A head near
another one has the penalty 1 / (2 C) (||w - w_0||^2 + ||b - b_0||^2). Cost: one representation of each history item and
about a second of fitting; a head near another one takes some 10 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personalization.methods.taste.priors import log_softmax

Floats = NDArray[np.floating]
STEPS = 1000


@dataclass(frozen=True)
class Head:
    """`weights` float32 [K, d] and `bias` [K] on features that have `mean` and `spread` [d]."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    def log_probs(self, features: Floats) -> NDArray[np.float64]:
        """log p(y | x) of features [n, d], float [n, K]."""
        return log_softmax((features - self.mean) / self.spread @ self.weights.T + self.bias)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """By name, to be saved."""
        return {"weights": self.weights, "bias": self.bias, "mean": self.mean, "spread": self.spread}


def fit_head(features: Floats, labels: NDArray[np.int64], label_features: Floats, c: float) -> Head:
    """The head of items [m, d] with labels [m], and of the labels' own texts [K, d]."""
    from sklearn.linear_model import LogisticRegression

    examples = np.concatenate([features, label_features]).astype(np.float64)
    mean, spread = examples.mean(axis=0), examples.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    known = np.concatenate([labels, np.arange(len(label_features))])
    fitted = LogisticRegression(C=c, max_iter=STEPS).fit((examples - mean) / spread, known)
    weights, bias = fitted.coef_, fitted.intercept_
    if len(weights) == 1:  # two labels have one row, for the second
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return Head(*(np.ascontiguousarray(array, dtype=np.float32) for array in (weights, bias, mean, spread)))


def fit_near(base: Head, features: Floats, labels: NDArray[np.int64], c: float) -> Head:
    """The head of items [m, d] with labels [m] that is pulled towards `base`; without items it is `base`."""
    from scipy.optimize import minimize

    if not len(labels):
        return base
    x = np.column_stack([(features - base.mean) / base.spread, np.ones(len(features))]).astype(np.float64)
    began = np.column_stack([base.weights, base.bias]).astype(np.float64)
    gold = np.eye(len(began))[labels]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        moved = flat.reshape(began.shape)
        log_probs = log_softmax(x @ (began + moved).T)
        value = -(gold * log_probs).sum() + (moved**2).sum() / (2 * c)
        return float(value), ((np.exp(log_probs) - gold).T @ x + moved / c).ravel()

    found = minimize(loss, np.zeros(began.size), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    weights = (began + found.x.reshape(began.shape)).astype(np.float32)
    return Head(np.ascontiguousarray(weights[:, :-1]), np.ascontiguousarray(weights[:, -1]), base.mean, base.spread)
