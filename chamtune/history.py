"""What the history of trials teaches, as DataFrames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chamtune.frames import rows_of
from chamtune.study import Study
from personalization.errors import UsageError
from studies.foreign import Mapped, cell, table_history
from studies.insights.history import together
from studies.insights.reading import read_histories
from studies.insights.report import insights_of
from studies.insights.values import TOP

if TYPE_CHECKING:
    import pandas as pd


def insights(
    *studies: str | Study,
    frame: pd.DataFrame | None = None,
    value: str | None = None,
    direction: str = "maximize",
    constraints: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
    home: str | Path = ".chamtune",
    **how: Any,
) -> dict[str, pd.DataFrame]:
    """Tables by name: scores, course, importance, feasibility, interactions, cells, trends, likely, prices, curve, box,
    suggestions.

    Of studies by name or as objects (several are compared by rank), or of a `frame` with a row a finished run: its
    column `value`, bounds on columns (`constraints`: column -> ">= 0.6"), `groups` (column -> group), all others being
    parameters. `how`: `top` (.3), the share of feasible trials that are good; `evaluator`: ped_anova, fanova or mdi
    beside; `group`: the parameters of one group only; `goal`: of studies with several goals, by which.
    """
    if unknown := set(how) - {"top", "evaluator", "group", "goal"}:
        raise UsageError(f"insights has no {min(unknown)!r}; there are top, evaluator, group, goal")
    if frame is not None:
        if value is None or studies:
            raise UsageError("give a frame and its column of values, or studies")
        rows = [{name: cell(held) for name, held in row.items()} for row in rows_of(frame, "frame")]
        found = table_history(rows, Mapped(value, direction, constraints or {}, groups or {}), "frame")
    else:
        homes = {study.home for study in studies if isinstance(study, Study)} or {Path(home)}
        if len(homes) > 1:
            raise UsageError("studies of one home can be compared; import those of another")
        names = [study.spec.name if isinstance(study, Study) else study for study in studies]
        found = together(read_histories(names, homes.pop(), None, how.get("goal")))
    found = found.of_group(how.get("group"))
    return insights_of(found, how.get("top", TOP), how.get("evaluator"))
