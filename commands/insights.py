"""What the history of trials teaches; histories from elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import HOME, HomeOption, JsonOption, StorageOption, answer, opened_studies, refuse

if TYPE_CHECKING:
    from optuna import Study

    from studies.foreign import Mapped

ValueOption = Annotated[str | None, typer.Option(help="Of a table: the column that tells how good a run was.")]
MinimizeOption = Annotated[bool, typer.Option("--minimize", help="Of a table: smaller values are better.")]
GroupsOption = Annotated[
    list[str] | None, typer.Option("--columns", help="Of a table: GROUP=COLUMN,COLUMN,... May be repeated.")
]
BoundsOption = Annotated[
    list[str] | None, typer.Option("--constraint", help='Of a table: a bound on a column, "size <= 100". Repeatable.')
]
LeaveOption = Annotated[list[str] | None, typer.Option("--leave-out", help="Of a table: a column that is nothing.")]


def insights(
    studies: Annotated[
        list[str] | None, typer.Argument(help="Of the home folder; several are compared by rank.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Instead: a table with a row a finished run.")] = None,
    value: ValueOption = None,
    minimize: MinimizeOption = False,
    columns: GroupsOption = None,
    constraint: BoundsOption = None,
    leave_out: LeaveOption = None,
    group: Annotated[str | None, typer.Option(help="Parameters of one group only.")] = None,
    format: Annotated[str, typer.Option(help="table, json, or csv (the value scores).")] = "table",
    goal: Annotated[str | None, typer.Option(help="Of a study with several goals: by which; else the first.")] = None,
    top: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of feasible trials that are good.")] = 0.3,
    importance: Annotated[
        str | None, typer.Option(help="Beside ours: ped_anova, fanova or mdi, as Optuna computes them.")
    ] = None,
    path: Annotated[
        bool, typer.Option("--path", help="Measure the way from the baseline to the winner; needs model and data.")
    ] = False,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="First work out the fields of trials that ended before there were any.")
    ] = False,
    enqueue: Annotated[int, typer.Option(min=0, help="Put so many suggestions into the study's queue.")] = 0,
    home: HomeOption = HOME,
    storage: StorageOption = None,
) -> None:
    """What goes with good trials, what matters, what it costs, and what to try next."""
    from personalization.errors import UsageError
    from studies.foreign import csv_rows, table_history
    from studies.insights.history import together
    from studies.insights.reading import read_histories
    from studies.insights.report import insights_of
    from studies.study import find_study

    if format not in FORMATS:
        raise UsageError(f"--format {format}: there are {', '.join(FORMATS)}")
    names = studies or []
    needing = [name for name, given in (("path", path), ("enqueue", enqueue), ("backfill", backfill)) if given]
    if needing and (csv is not None or len(names) != 1):
        raise UsageError(f"--{needing[0]} is of one study; name it")
    told = (value, minimize, columns, constraint, leave_out)
    _refuse_other(csv, names, _of_mapped(*told), {"goal": goal, "storage": storage})
    queue = find_study(names[0], home, storage, reading=False) if enqueue else None
    if backfill:
        _backfill(names[0], home, storage)
    if csv is not None:
        found = table_history(csv_rows(csv), _mapped(*told), csv.name)
    else:
        found = together(read_histories(names, home, storage, goal))
    found = found.of_group(group)
    way = _path(names[0], goal, home, storage) if path else None
    frames = insights_of(found, top, importance, way)
    _print(format, found, frames, top, way)
    if queue is not None:
        _enqueue(queue, frames["suggestions"].to_dict("records")[:enqueue])


FORMATS = ("table", "json", "csv")


def _print(format: str, found: Any, frames: Any, top: float, way: Any) -> None:
    from studies.insights.report import as_json, harmless
    from studies.shown.insights import print_insights

    if format == "csv":
        frames["scores"].map(harmless).to_csv(sys.stdout, index=False)
    elif format == "json":
        print(json.dumps({**as_json(found, frames, top), "path": way}))
    else:
        print_insights(found, frames, way)


def _refuse_other(csv: Path | None, names: list[str], of_table: dict[str, Any], of_studies: dict[str, Any]) -> None:
    """UsageError for options that are of a table where studies are named, or the other way round."""
    if csv is None:
        refuse(of_table, "a table; name it with --csv FILE")
    else:
        refuse(of_studies, "studies; --csv names a table")
        refuse({"csv": names}, "a table alone; leave it out, or the studies")


def _of_mapped(*given: Any) -> dict[str, Any]:
    """What `_mapped` takes, by the names of its options."""
    return dict(zip(("value", "minimize", "columns", "constraint", "leave-out"), given, strict=True))


def _mapped(
    value: str | None,
    minimize: bool,
    columns: list[str] | None,
    constraint: list[str] | None,
    leave_out: list[str] | None,
) -> Mapped:
    from personalization.errors import UsageError
    from studies.foreign import Mapped

    if value is None:
        raise UsageError("which column tells how good a run was? Give --value COLUMN")
    groups: dict[str, str] = {}
    for told in columns or []:
        name, found, listed = told.partition("=")
        if not found or not name or not listed:
            raise UsageError(f"--columns {told}: write GROUP=COLUMN,COLUMN")
        groups |= {column.strip(): name.strip() for column in listed.split(",")}
    bounds = {}
    for text in constraint or []:
        place = min((at for at in (text.find("<="), text.find(">=")) if at > 0), default=0)
        if not place:
            raise UsageError(f'--constraint {text!r}: write "COLUMN <= NUMBER" or "COLUMN >= NUMBER"')
        bounds[text[:place].strip()] = text[place:].strip()
    return Mapped(value, "minimize" if minimize else "maximize", bounds, groups, leave_out or [])


def _backfill(name: str, home: Path, storage: str | None) -> None:
    from studies.insights.reading import backfill
    from studies.shown.consoles import notes

    with opened_studies([name], home, storage) as (opened,):
        done = backfill(opened)
    notes.print(f"fields of {done['filled']} trials of {name} are worked out; {done['had']} had theirs")


def _path(name: str, goal: str | None, home: Path, storage: str | None) -> dict[str, Any]:
    from personalization.files import write_atomic
    from studies.insights.path import path_of
    from studies.insights.reading import path_file

    with opened_studies([name], home, storage) as (opened,):
        found = path_of(opened, goal)
    write_atomic(path_file(home, name, goal), json.dumps(found, indent=1))
    return found


def _enqueue(study: Study, made: list[dict[str, Any]]) -> None:
    from studies.recovery import enqueue
    from studies.shown.consoles import notes

    for one in made:
        enqueue(study, one["params"], suggested=f"{one['kind']}: {one['reason']}")
    notes.print(
        f"{len(made)} suggestions are queued in {study.study_name}; `chamtune run` with more --trials takes them first"
    )


def import_(
    source: Annotated[str, typer.Argument(metavar="CSV|OPTUNA_URL|MLFLOW_URI")],
    name: Annotated[str | None, typer.Option(help="Of the study here; default: its name there, or the file's.")] = None,
    study: Annotated[str | None, typer.Option(help="Of an Optuna URL: which study.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Of an MLflow URI: which experiment.")] = None,
    value: ValueOption = None,
    minimize: MinimizeOption = False,
    columns: GroupsOption = None,
    constraint: BoundsOption = None,
    leave_out: LeaveOption = None,
    home: HomeOption = HOME,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take finished runs of any origin, marked as foreign, for insights and dashboards."""
    from studies.foreign import import_optuna, import_rows, mlflow_rows, rows_of
    from studies.shown.display import print_line
    from studies.shown.logs import log_to

    with log_to(home):
        if experiment is None and "://" in source:
            of_table = _of_mapped(value, minimize, columns, constraint, leave_out)
            refuse(of_table, "a table or an --experiment; a study of Optuna says it itself")
            result = import_optuna(source, study, name, (home, storage))
        else:
            refuse({"study": study}, "an Optuna URL alone")
            mapped = _mapped(value, minimize, columns, constraint, leave_out)
            rows, named = mlflow_rows(source, experiment, mapped) if experiment else rows_of(Path(source))
            result = import_rows(rows, mapped, name or named, (home, storage))
    said = (
        f"{result['trials']} runs of {result['source']} are study {result['study']}, {result['complete']} with a value"
    )
    if result["left_out"]:
        said += f"; left out, since they name the runs: {', '.join(result['left_out'])}"
    answer(as_json, result, lambda: print_line(said))
