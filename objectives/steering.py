"""Steering, and calibration on top of it. A trial runs the layers above the first edited one; calibration is free.

The tune users' table is scored once without steering. Tables of edits are kept, so that trials which differ in
calibration only cost arithmetic. The label bias of steered questions is that of the steered tune questions; a question
that is not steered has the bits of the plain model's scores.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives import Report, Scorer
from objectives.calibration import BLOCKS, Calibration, _listed, _Part, solved
from personalization.data.splits import Splits
from personalization.evaluation import Evaluation
from personalization.methods.steering.steered_scorer import SteeredTable, joined
from personalization.methods.steering.user_steering import Learned, Settings, UserSteering
from personalization.methods.taste.calibration import Calibrated, PriorTables, calibrate
from personalization.methods.taste.priors import log_mean_probability
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
        params = self.resolved(params)
        return calibrate(
            self._scores(part.name, params), part.counts, self._priors(part.name, params), **_calibration(params)
        )

    def _priors(self, part: str, params: Any) -> PriorTables:
        """The prior tables for the questions of a part."""
        if not _steers(params):
            return self.tables
        settings = _settings(params)
        return self._biased(self._steered("tune", settings), self._steered(part, settings).steered)

    def _biased(self, tune: SteeredTable, steered: NDArray[np.bool_]) -> PriorTables:
        """The prior tables of questions [n]; the bias of steered ones is that of the steered tune questions."""
        bias = np.where(steered[:, None], self._bias(tune), self.tables.log_model["batch"])
        return replace(self.tables, log_model={**self.tables.log_model, "batch": bias})

    def _bias(self, tune: SteeredTable) -> NDArray[np.float64]:
        """The model's label bias when steered, [K]."""
        return log_mean_probability(tune.scores[tune.steered] if tune.steered.any() else tune.scores)

    def _scores(self, part: str, params: Any) -> NDArray[np.float32]:
        if not _steers(params):
            return self._part(part).scores
        return self._steered(part, _settings(params)).scores

    def _steered(self, part: str, settings: Settings) -> SteeredTable:
        if (part, settings) not in self._tables:
            self._keep(part, settings, joined(list(self._blocks(part, settings)), self._part(part).blocks))
        return self._tables[part, settings]

    def _blocks(self, part: str, settings: Settings) -> Iterator[SteeredTable]:
        """The steered tables of a part's blocks; questions that are not steered have the model's own scores."""
        blocks, plain = self._part(part).blocks, self._part(part).scores
        if (part, settings) in self._tables:
            whole = self._tables[part, settings]
            yield from (SteeredTable(whole.scores[rows], whole.steered[rows], whole.firings) for rows in blocks)
            return
        for rows, table in zip(blocks, self._steering(part).tables(settings, self._learn(settings)), strict=True):
            table.scores[~table.steered] = plain[rows][~table.steered]
            yield table

    def _keep(self, part: str, settings: Settings, table: SteeredTable) -> None:
        self._tables[part, settings] = table
        if len(self._tables) > KEPT_TABLES:
            self._tables.popitem(last=False)

    def evaluate(self, params: Any, part: str = "tune", report: Report | None = None) -> Evaluation:
        """Measure on one part; with `report`, after each block of users, before the next one is scored."""
        if report is None or not _steers(params):
            return super().evaluate(params, part, report)
        scored, settings, tables = self._part(part), _settings(params), list[SteeredTable]()
        for table in self._blocks(part, settings):
            tables.append(table)
            if len(tables) < len(scored.blocks):
                report(self._so_far(scored, params, joined(tables, _in_a_row(tables))))
        if (part, settings) not in self._tables:
            self._keep(part, settings, joined(tables, scored.blocks))
        return super().evaluate(params, part)

    def _so_far(self, scored: _Part, params: Any, table: SteeredTable) -> Evaluation:
        """The evaluation of the first blocks, with the label bias, and where it is exact the fit, of these."""
        ends = np.cumsum([len(rows) for rows in scored.blocks])
        rows = np.concatenate(scored.blocks[: int(np.searchsorted(ends, len(table.scores))) + 1])
        priors = self._biased(table, table.steered)
        params = solved(params, table.scores, scored.counts[rows], scored.gold[rows], priors)
        return scored.evaluation(calibrate(table.scores, scored.counts[rows], priors, **_calibration(params)), rows)

    def resolved(self, params: Any) -> Any:
        """With `fit: exact`, the parameters with the optimum of NLL on tune for beta, gamma and tau."""
        if params.fit != "exact":
            return params
        part = self._part("tune")
        return solved(params, self._scores("tune", params), part.counts, part.gold, self._priors("tune", params))

    def settle(self, params: Any) -> Any:
        """The resolved parameters with the temperature that minimises NLL on tune."""
        return super().settle(self.resolved(params))

    def observed(self, params: Any) -> dict[str, float]:
        """What steering did.

        The least hook calls, and edited tokens a steered question, of the edited layers; the share of questions that
        are steered; mean ||edit|| / ||h||; the largest score change.
        """
        if not _steers(params):
            return {}
        table, plain = self._steered("tune", _settings(params)), self._part("tune").scores
        moved = np.abs(table.scores - plain)
        return {
            "steering_hook_calls": float(min(table.firings.calls.values())),
            "steering_edits_a_question": min(table.firings.edited.values()) / max(1, int(table.steered.sum())),
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

    def files(self, params: Any) -> Mapping[str, bytes]:
        """The vectors of the tune users, with what they were found by, as safetensors."""
        if not _steers(params):
            return {}
        return {"vectors.safetensors": self._steering("tune").vectors(_settings(params)).content()}

    def remarks(self, params: Any) -> list[str]:
        """Why steering changes no label, or breaks the model."""
        if not _steers(params):
            return ["nothing is steered: alpha_personal and alpha_general are 0", *super().remarks(params)]
        settings = _settings(params)
        table, plain = self._steered("tune", settings), self._part("tune").scores
        if not table.steered.any():
            return [f"nothing is steered: the {params.gate} gate opened for no question"]
        if (table.scores.argmax(axis=1) == plain.argmax(axis=1)).all():
            two = np.sort(plain[table.steered], axis=1)[:, -2:]
            closest, moved = float(np.diff(two).min()), float(np.abs(table.scores - plain).max())
            layers = ", ".join(map(str, self._learn(settings).layers))
            return [
                f"steering changes no label: at layers {layers} its direction is orthogonal to what tells labels "
                f"apart, or too short; scores move by at most {moved:.2g} nats, and the closest decision is "
                f"{closest:.2g} wide",
            ]
        before, after = (float(np.bincount(t.argmax(axis=1)).max() / len(t)) for t in (plain, table.scores))
        if after > max(COLLAPSED, before):
            return [
                f"steering breaks the model: one label takes {after:.0%} of the answers ({before:.0%} without), at "
                f"edits of {table.firings.mean_relative_edit:.2g} times the states' length; take smaller strengths"
            ]
        return []

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
        params = self.resolved(params)
        config = super().deployment(params)
        if _steers(params):
            settings = _settings(params)
            bias = self._bias(self._steered("tune", settings))
            config["steering"] = {"learned": self._learn(settings).listed(), "log_model": _listed(bias)}
        return config

    def warm_start(self) -> list[dict[str, Any]]:
        """The calibration's optima without steering, and solved for the plainest edit, one norm long, at thirds."""
        points = [{**asdict(BASELINE), **point} for point in super().warm_start()]
        edits = [{"alpha_personal": 1.0, "start": start, "fit": "exact"} for start in (0.34, 0.51, 0.67)]
        return [*points, *({**points[-1], **edit} for edit in edits if points)]


def _in_a_row(tables: Sequence[SteeredTable]) -> list[NDArray[np.int64]]:
    """The rows of tables that stand one after the other."""
    ends = np.cumsum([len(table.scores) for table in tables])
    return [np.arange(end - len(table.scores), end) for table, end in zip(tables, ends, strict=True)]


def _settings(params: Any) -> Settings:
    return Settings(**{name: getattr(params, name) for name in STEERING})


def _steers(params: Any) -> bool:
    return bool(params.alpha_personal != 0 or params.alpha_general != 0)


def _calibration(params: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(params).items() if name not in (*STEERING, "fit")}
