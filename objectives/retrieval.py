"""The history ranked for each question: as a label prior, and in the prompt.

A prior costs arithmetic, another text for the labels one embedding of each, and each number of items in the prompt with
each ranking one scoring pass, which is kept. What is learned from tune users are the tables of the calibration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives import Scorer
from objectives.calibration import Calibration, _listed, _Part
from personalization.data.prompts import WORDINGS, continuations
from personalization.data.splits import Splits
from personalization.methods.history.ranking import Histories, retrieval_calibrate, scaled
from personalization.methods.taste.calibration import Calibrated, PriorTables
from personalization.methods.taste.priors import log_mean_probability
from search_spaces.retrieval import BASELINE

WIDTHS = (0.05, 0.1, 0.3)
"""Kernel widths that the exact solvers start from."""


class Retrieval(Calibration):
    """Calibration with a prior from the history items most like the question, and with items in the prompt."""

    method = "retrieval"

    def __init__(self, splits: Splits, scorer: Scorer, progress: Callable[[int, int], None] | None = None) -> None:
        self._ranked: dict[str, Histories] = {}
        self._asked_about_nothing: dict[str, dict[str, NDArray[np.float32]]] = {}
        super().__init__(splits, scorer, progress)

    def _apply(self, part: _Part, params: Any) -> Calibrated:
        histories = self._histories(part.name)
        counts: NDArray[np.number[Any]] = histories.counts(params) if params.prior_mode == "similar" else part.counts
        return retrieval_calibrate(self._scores(part.name, params), counts, self._priors(params), **asdict(params))

    def _scores(self, part: str, params: Any) -> NDArray[np.float32]:
        return self._histories(part).scores(params)

    def _histories(self, part: str) -> Histories:
        if part not in self._ranked:
            self._ranked[part] = Histories(self._scorer, self._splits.part(part), self._progress)
        return self._ranked[part]

    def _priors(self, params: Any) -> PriorTables:
        """The prior tables, with the model's label bias as it is under these prompts and label texts."""
        if params.template not in self._asked_about_nothing:
            encoder, labels = self._scorer.kind == "encoder", self._splits.tune.labels
            template = params.template if encoder else WORDINGS[self._scorer.kind].template["continuation"]
            self._asked_about_nothing[params.template] = self._neutral(continuations(labels, template))
        neutral = {source: scaled(t, params.scale) for source, t in self._asked_about_nothing[params.template].items()}
        tables = {"batch": self._scores("tune", params), **neutral}
        bias = {source: log_mean_probability(table) for source, table in tables.items()}
        return replace(self.tables, log_model=bias)

    def observed(self, params: Any) -> dict[str, float]:
        """With items in the prompt: the accuracy of the same parameters without them, and prompts that were cut."""
        if not params.k:
            return {}
        without = self.evaluate(replace(params, k=0))
        return {
            "accuracy_without_items": without.metrics["accuracy"],
            "prompts_shortened": float(self._histories("tune").prompts_shortened(params)),
        }

    def remarks(self, params: Any) -> list[str]:
        """Whether items in the prompt helped, too."""
        if not params.k:
            return super().remarks(params) if params.template == BASELINE.template else []
        before, after = (self.evaluate(p).metrics["accuracy"] for p in (replace(params, k=0), params))
        items = f"{params.k} history items in the prompt"
        said = [f"with {items} accuracy is {after:.3f}, and {before:.3f} without, all else equal"]
        cut = self._histories("tune").prompts_shortened(params)
        return [*said, f"{cut} prompts had items that were cut to fit the model"] if cut else said

    def deployment(self, params: Any) -> dict[str, Any]:
        """That of the calibration, with the label bias of these prompts and label texts."""
        config = super().deployment(params)
        config["priors"]["log_model"] = {name: _listed(table) for name, table in self._priors(params).log_model.items()}
        return config

    def warm_start(self) -> list[dict[str, Any]]:
        """The calibration's optima, and those with the prior of relevant items, by each ranking and three widths."""
        part, found = self._part("tune"), []
        if self.tables.global_probs is None:
            return []
        for width in WIDTHS:
            params = replace(BASELINE, prior_mode="similar", ranking="similarity", width=width, half_life=30.0)
            raw = {"prior_mode": "similar", "ranking": "similarity", "width": width, "half_life": 30.0}
            points = self._exact(part, self._histories("tune").counts(params))
            found += [{**asdict(BASELINE), **point, **raw} for point in points]
        plain = [{**asdict(BASELINE), **point} for point in super().warm_start()]
        return [*plain, *found]
