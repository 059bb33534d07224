"""Steering, and calibration on top of it. A trial runs the layers above the first edited one; calibration is free.

The tune users' table is scored once without steering. Tables of the latest edits are kept, so that trials which differ
in calibration only cost arithmetic. The model's label bias is taken from the steered scores of the tune users.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives import Scorer
from objectives.calibration import Calibration, _listed, _Part
from personalization.data.splits import Splits
from personalization.methods.calibration import Calibrated, PriorTables, calibrate
from personalization.methods.priors import log_mean_probability
from personalization.methods.steered_scorer import SteeredTable
from personalization.methods.user_steering import Learned, Settings, UserSteering
from search_spaces.steering import BASELINE

KEPT_TABLES = 64

STEERING = tuple(field.name for field in fields(Settings))


class Steering(Calibration):
    """Hidden states moved along each user's direction, and the calibration of what the model then says."""

    method = "steering"

    def __init__(self, splits: Splits, scorer: Scorer, progress: Callable[[int, int], None] | None = None) -> None:
        super().__init__(splits, scorer, progress)
        self._users: dict[str, UserSteering] = {}
        self._learned: OrderedDict[Settings, Learned] = OrderedDict()
        self._tables: OrderedDict[tuple[str, Settings], SteeredTable] = OrderedDict()

    def _apply(self, part: _Part, params: Any) -> Calibrated:
        return calibrate(self._scores(part.name, params), part.counts, self._priors(params), **_calibration(params))

    def _priors(self, params: Any) -> PriorTables:
        """The prior tables, with the model's label bias as it is when steered."""
        if not _steers(params):
            return self.tables
        bias = log_mean_probability(self._scores("tune", params))
        return replace(self.tables, log_model={**self.tables.log_model, "batch": bias})

    def _scores(self, part: str, params: Any) -> NDArray[np.float32]:
        if not _steers(params):
            return self._part(part).scores
        return self._steered(part, _settings(params)).scores

    def _steered(self, part: str, settings: Settings) -> SteeredTable:
        if (part, settings) not in self._tables:
            self._tables[part, settings] = self._steering(part).scores(settings, self._learn(settings))
            if len(self._tables) > KEPT_TABLES:
                self._tables.popitem(last=False)
        return self._tables[part, settings]

    def observed(self, params: Any) -> dict[str, float]:
        """Hook calls a layer, the share of questions steered, mean ||edit|| / ||h||, and the largest score change."""
        if not _steers(params):
            return {}
        table, plain = self._steered("tune", _settings(params)), self._part("tune").scores
        moved = np.abs(table.scores - plain)
        return {
            "steering_hook_calls": float(max(table.firings.calls.values())),
            "steering_steered_share": float(table.steered.mean()),
            "steering_relative_edit": table.firings.mean_relative_edit,
            "steering_largest_score_change": float(moved.max()),
        }

    def _learn(self, settings: Settings) -> Learned:
        if settings not in self._learned:
            self._learned[settings] = self._steering("tune").learn(settings)
            if len(self._learned) > KEPT_TABLES:
                self._learned.popitem(last=False)
        return self._learned[settings]

    def _steering(self, part: str) -> UserSteering:
        if part not in self._users:
            scorer: Any = self._scorer
            self._users[part] = UserSteering(scorer, self._splits.part(part), self._progress)
        return self._users[part]

    def deployment(self, params: Any) -> dict[str, Any]:
        """That of the calibration, and what steering learned from the tune users."""
        config = super().deployment(params)
        if _steers(params):
            settings = _settings(params)
            learned = self._learn(settings)
            config["priors"]["log_model"]["batch"] = _listed(self._priors(params).log_model["batch"])
            config["steering"] = learned.listed(settings.layers(len(learned.norms)))
        return config

    def warm_start(self) -> list[dict[str, Any]]:
        """The calibration's optima without steering, and with the plainest edit, one residual norm long, at thirds."""
        points = [{**asdict(BASELINE), **point} for point in super().warm_start()]
        edits = [{"alpha_personal": 1.0, "start": start} for start in (0.34, 0.51, 0.67)]
        return [*points, *({**points[-1], **edit} for edit in edits if points)]


def _settings(params: Any) -> Settings:
    return Settings(**{name: getattr(params, name) for name in STEERING})


def _steers(params: Any) -> bool:
    return bool(params.alpha_personal != 0 or params.alpha_general != 0)


def _calibration(params: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(params).items() if name not in STEERING}
