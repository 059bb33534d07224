"""What Prometheus reads: of the last answers, of batches, of the model and of the folder that is served."""

from __future__ import annotations

from collections import Counter as Tally
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from scipy.special import logsumexp

from personalization.deployment import Prediction
from personalization.metrics import entropy_bits

WINDOW = 1000
"""Answers that shares, entropy and top-1 share are of."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Gauges:
    """The gauges of one server, in a registry of their own."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.registry = of = CollectorRegistry()
        self._last: deque[tuple[str, bool]] = deque(maxlen=WINDOW)
        self._labels = tuple(labels)
        self.answers = Counter("chamtune_answers", "Questions answered", ["arm"], registry=of)
        self.feedback = Counter("chamtune_feedback", "Labels that came later", ["right"], registry=of)
        for right in ("true", "false"):
            self.feedback.labels(right)  # a rate needs a series from the start
        self.shadow_failures = Counter("chamtune_shadow_failures", "Batches that the shadow failed on", registry=of)
        odd = "History items whose label is none of the deployment's, which count for nothing"
        self.uncounted = Counter("chamtune_uncounted_items", odd, registry=of)
        self.batch = Histogram("chamtune_batch_questions", "Questions of a batch", buckets=SIZES, registry=of)
        self.seconds = Histogram("chamtune_batch_seconds", "Seconds of a batch", buckets=SECONDS, registry=of)
        self.generation = Gauge("chamtune_generation", "Generation that serves", registry=of)
        self.swaps = Gauge("chamtune_swaps", "Generations that took over since the start", registry=of)
        self.failed = Gauge("chamtune_generation_failed", "1: a new generation could not be served", registry=of)
        self.mass = Gauge("chamtune_label_mass", "Probability of all labels together, last pass", registry=of)
        self.hits = Gauge("chamtune_cached_texts", "Embeddings that were at hand", registry=of)
        self.texts = Gauge("chamtune_asked_texts", "Embeddings that were asked for", registry=of)
        share = Gauge("chamtune_label_share", f"Share among the last {WINDOW} answers", ["label"], registry=of)
        for label in self._labels:
            share.labels(label).set_function(partial(self._share, label))
        for name, said, read in (
            ("chamtune_entropy_bits", "Entropy of the answers' labels", self._entropy),
            ("chamtune_top1_share", "Share of the most frequent answer", self._top1),
            ("chamtune_without_history_share", "Share of questions without history", self._bare),
        ):
            Gauge(name, f"{said}, of the last {WINDOW}", registry=of).set_function(read)

    def answered(self, answers: Sequence[Prediction], bare: Sequence[bool], arms: Sequence[str]) -> None:
        """Note answers, which of them had no history, and their arms."""
        self._last.extend((answer.label, none) for answer, none in zip(answers, bare, strict=True))
        for arm, count in Tally(arms).items():
            self.answers.labels(arm).inc(count)

    def scored(self, scores: NDArray[np.float32]) -> None:
        """Note the scores [n, K] of a causal model's pass."""
        if len(scores):
            self.mass.set(float(np.exp(logsumexp(scores, axis=1)).mean()))

    def _share(self, label: str) -> float:
        return self._shares().get(label, 0.0)

    def _shares(self) -> dict[str, float]:
        last = list(self._last)
        return {label: count / len(last) for label, count in Tally(label for label, _ in last).items()}

    def _entropy(self) -> float:
        counts: Any = Tally(label for label, _ in list(self._last))
        return entropy_bits(np.array([counts[label] for label in self._labels])) if counts else 0.0

    def _top1(self) -> float:
        return max(self._shares().values(), default=0.0)

    def _bare(self) -> float:
        last = list(self._last)
        return sum(none for _, none in last) / len(last) if last else 0.0
