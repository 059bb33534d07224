"""Steering, and calibration on top of it. A trial runs the layers above the first edited one; calibration is free.

The tune users' table is scored once without steering. Tables of the latest edits are kept, so that trials which differ
in calibration only cost arithmetic. The model's label bias is taken from the steered scores of the tune users.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives import Report, Scorer
from objectives.calibration import BLOCKS, Calibration, _listed, _Part
from personalization.data.splits import Splits
from personalization.evaluation import Evaluation
from personalization.methods.calibration import Calibrated, PriorTables, calibrate
from personalization.methods.priors import log_mean_probability
from personalization.methods.steered_scorer import SteeredTable, joined
from personalization.methods.user_steering import Learned, Settings, UserSteering
from search_spaces.steering import BASELINE

KEPT_TABLES = 64
COLLAPSED = 0.9
"""Share of one label in the answers above which steering is said to break the model."""

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
            self._keep(part, settings, self._steering(part).scores(settings, self._learn(settings)))
        return self._tables[part, settings]

    def _keep(self, part: str, settings: Settings, table: SteeredTable) -> None:
        self._tables[part, settings] = table
        if len(self._tables) > KEPT_TABLES:
            self._tables.popitem(last=False)

    def evaluate(self, params: Any, part: str = "tune", report: Report | None = None) -> Evaluation:
        """Measure on one part; with `report`, after each block of users, before the next one is scored."""
        if report is None or not _steers(params):
            return super().evaluate(params, part, report)
        scored, settings = self._part(part), _settings(params)
        kept = self._tables.get((part, settings))
        if kept is not None:
            for end in range(1, len(scored.blocks)):
                report(self._so_far(scored, params, [kept.scores[rows] for rows in scored.blocks[:end]]))
            return super().evaluate(params, part)
        tables: list[SteeredTable] = []
        for table in self._steering(part).tables(settings, self._learn(settings)):
            tables.append(table)
            if len(tables) < len(scored.blocks):
                report(self._so_far(scored, params, [table.scores for table in tables]))
        self._keep(part, settings, joined(tables, scored.blocks))
        return super().evaluate(params, part)

    def _so_far(self, scored: _Part, params: Any, tables: list[NDArray[np.float32]]) -> Evaluation:
        """The evaluation of the first blocks, with the label bias of these."""
        rows, scores = np.concatenate(scored.blocks[: len(tables)]), np.concatenate(tables)
        bias = {**self.tables.log_model, "batch": log_mean_probability(scores)}
        priors = replace(self.tables, log_model=bias)
        first = calibrate(scores, scored.counts[rows], priors, **_calibration(params))
        return scored.evaluation(first, rows)

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

    def pictures(self, params: Any) -> Mapping[str, Mapping[str, Any]]:
        """Edited layers beside how well the direction separates at each; how far each question's scores move."""
        if not _steers(params):
            return {}
        settings, plain = _settings(params), self._part("tune")
        moved = self._steered("tune", settings)
        right, before = (t.argmax(axis=1) == plain.gold for t in (moved.scores, plain.scores))
        return {
            "edits": {
                "separations": self._steering("tune").separations(settings),
                "layers": self._learn(settings).layers,
                "moved": np.abs(moved.scores - plain.scores).max(axis=1),
                "helped": right & ~before,
                "hurt": before & ~right,
            }
        }

    def remarks(self, params: Any) -> list[str]:
        """Why steering changes no label, or breaks the model."""
        if not _steers(params):
            return ["nothing is steered: alpha_personal and alpha_general are 0", *super().remarks(params)]
        said: list[str] = []
        settings = _settings(params)
        table, plain = self._steered("tune", settings), self._part("tune").scores
        if not table.steered.any():
            return [f"nothing is steered: the {params.gate} gate opened for no question", *said]
        if (table.scores.argmax(axis=1) == plain.argmax(axis=1)).all():
            two = np.sort(plain[table.steered], axis=1)[:, -2:]
            closest, moved = float(np.diff(two).min()), float(np.abs(table.scores - plain).max())
            layers = ", ".join(map(str, self._learn(settings).layers))
            return [
                f"steering changes no label: at layers {layers} its direction is orthogonal to what tells labels "
                f"apart, or too short; scores move by at most {moved:.2g} nats, and the closest decision is "
                f"{closest:.2g} wide",
                *said,
            ]
        before, after = (float(np.bincount(t.argmax(axis=1)).max() / len(t)) for t in (plain, table.scores))
        if after > max(COLLAPSED, before):
            said = [
                f"steering breaks the model: one label takes {after:.0%} of the answers ({before:.0%} without), at "
                f"edits of {table.firings.mean_relative_edit:.2g} times the states' length; take smaller strengths",
                *said,
            ]
        return said

    def _learn(self, settings: Settings) -> Learned:
        if settings not in self._learned:
            self._learned[settings] = self._steering("tune").learn(settings)
            if len(self._learned) > KEPT_TABLES:
                self._learned.popitem(last=False)
        return self._learned[settings]

    def _steering(self, part: str) -> UserSteering:
        if part not in self._users:
            scorer: Any = self._scorer
            self._users[part] = UserSteering(scorer, self._splits.part(part), self._progress, BLOCKS)
        return self._users[part]

    def deployment(self, params: Any) -> dict[str, Any]:
        """That of the calibration, and what steering learned from the tune users."""
        config = super().deployment(params)
        if _steers(params):
            settings = _settings(params)
            config["priors"]["log_model"]["batch"] = _listed(self._priors(params).log_model["batch"])
            config["steering"] = self._learn(settings).listed()
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
