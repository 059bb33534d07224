"""Studies: begin, run, look at, compare, serve the pages of."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.options import (
    HOME,
    STOPPED,
    HomeOption,
    JsonOption,
    StorageOption,
    TrackingOption,
    answer,
    opened_studies,
)


def run(
    spec: Annotated[str, typer.Argument(metavar="SPEC_OR_PRESET", help="A YAML file, or a preset's name.")],
    data: Annotated[Path | None, typer.Option(help="LaMP files, in the place of the spec's.")] = None,
    trials: Annotated[int | None, typer.Option(help="Finished trials in all, earlier runs included.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed; the study is then named NAME-seedS.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name for the study.")] = None,
    from_: Annotated[
        list[str] | None, typer.Option("--from", help="Carry on from a study: keep its trials that fit. Repeatable.")
    ] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Create or resume a study and run it to its number of trials."""
    from studies.carried import carried_said, carry_over
    from studies.runner import run_study
    from studies.shown.consoles import notes
    from studies.shown.display import print_result
    from studies.shown.logs import log_to
    from studies.shown.progress import RunDisplay
    from studies.spec import load_spec

    changes: dict[str, Any] = {}
    if trials is not None:
        changes["trials"] = trials
    if data is not None:
        changes["data"] = {"path": str(data)}
    loaded = load_spec(spec, changes)
    if seed is not None and seed != loaded.seed:
        loaded = load_spec(spec, {**changes, "seed": seed, "name": f"{loaded.name}-seed{seed}"})
    if name is not None:
        loaded = load_spec(spec, {**changes, "seed": loaded.seed, "name": name})
    with log_to(home), RunDisplay(loaded) as display:
        for row in carry_over(loaded, home, from_, display.scoring) if from_ else ():
            notes.print(carried_said(row))
        result = run_study(loaded, home, display)
    answer(as_json, result.as_json(), lambda: print_result(result, loaded))
    if result.stopped_by is not None:
        raise typer.Exit(STOPPED + result.stopped_by)
    if result.best is None:
        raise typer.Exit(1)


def init(
    table: Annotated[str, typer.Argument(help="A .csv, .jsonl, .parquet or .arrow file, or a hub data set.")],
    user: Annotated[str | None, typer.Option(help="The column of who it is that an item belongs to.")] = None,
    text: Annotated[str | None, typer.Option(help="The column of what is classified.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of the label.")] = None,
    time: Annotated[str | None, typer.Option(help="The column of when.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the study, and of the files.")] = None,
    out: Annotated[Path, typer.Option(help="The folder to write into.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Look at a table; write a commented spec and task to start from."""
    from studies.scaffold import begin
    from studies.shown.display import print_beginning

    found = begin(table, {"user": user, "text": text, "label": label, "time": time}, out, name)
    answer(as_json, found, lambda: print_beginning(found))


def studies(home: HomeOption = HOME, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """List the studies of a home folder."""
    from studies.shown.display import print_studies
    from studies.shown.show import list_studies

    rows = list_studies(home, storage)
    answer(as_json, rows, lambda: print_studies(rows))


def show(study: str, home: HomeOption = HOME, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Show one study: spec, counts, best trials."""
    from studies.shown.display import print_study
    from studies.shown.show import describe_study

    description = describe_study(study, home, storage)
    answer(as_json, description, lambda: print_study(description))


def compare(
    studies: Annotated[list[str], typer.Argument(help="Studies of the same data; gains are over the first.")],
    out: Annotated[Path, typer.Option(help="Where the figure goes.")] = Path("comparison.png"),
    home: HomeOption = HOME,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the best feasible trials of studies on the select users."""
    from personalization.data.lamp import files_read
    from personalization.databases import sqlite_file
    from personalization.errors import UsageError
    from personalization.files import refuse_unwritable, write_atomic
    from studies.data import places_of
    from studies.shown.consoles import beside
    from studies.shown.display import print_comparison, print_line
    from studies.storage import storage_url
    from studies.study import find_study, located_spec
    from studies.verdict.comparison import compare as compare_studies
    from studies.verdict.comparison import comparison_figure

    if twice := [study for study in studies if studies.count(study) > 1]:
        raise UsageError(f"study {twice[0]} is named twice; compare different ones")
    specs = [located_spec(find_study(study, home, storage)) for study in studies]
    read = [file for spec in specs for place in places_of(spec) if place for file in files_read(Path(place))]
    refuse_unwritable(out, sqlite_file(storage_url(home, storage)), *read)
    with opened_studies(studies, home, storage) as opened:
        result = compare_studies(opened)
    answer(as_json, result, lambda: print_comparison(result))
    write_atomic(out, comparison_figure(result))
    with beside(as_json):
        print_line(f"figure: {out}")


def summary(folder: Path, as_json: JsonOption = False) -> None:
    """Show the summary of a result folder, and which file it was read from."""
    from studies.shown.display import print_summary
    from tracking.report import read_summary

    found = read_summary(folder)
    metrics = {row[0]: row[1:] for row in found.rows}
    answer(as_json, {"source": found.source, "metrics": metrics}, lambda: print_summary(found))


def ui(
    home: HomeOption = HOME,
    storage: StorageOption = None,
    tracking: TrackingOption = None,
    port: Annotated[int, typer.Option(help="Of the start page and the insights.")] = 8081,
    dashboard_port: int = 8080,
    mlflow_port: int = 5000,
    log: Annotated[list[Path] | None, typer.Option(help="A server's log outside the home; again for each.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Let the dashboard's page change and delete studies.")] = False,
) -> None:
    """Serve a start page, insights, what servers logged, optuna-dashboard and MLflow on this machine until Ctrl-C."""
    from personalization.files import writing_home
    from studies.shown.ui import Pages, serve
    from studies.storage import storage_url

    def ready(pages: Pages) -> None:
        typer.echo(f"start page        {pages.start}\noptuna-dashboard  {pages.dashboard}")
        typer.echo(f"MLflow            {pages.mlflow}  of {pages.store}")
        for study, page in pages.studies.items():
            typer.echo(f"  {study}  {page}")
        typer.echo("Ctrl-C stops all")
        sys.stdout.flush()

    with writing_home():
        home.mkdir(parents=True, exist_ok=True)
    os.environ["CHAMTUNE_LOGS"] = os.pathsep.join(str(path.resolve()) for path in log or ())
    ports = (port, dashboard_port, mlflow_port)
    serve(home, storage_url(home, storage), tracking, ports, "serving.pages.app", ready, write)


def sync(study: str, home: HomeOption = HOME, storage: StorageOption = None, tracking: TrackingOption = None) -> None:
    """Send to MLflow what an earlier run could not."""
    from studies.sync import sync as sync_study

    typer.echo(f"everything of {study} is in {sync_study(study, home, storage, tracking)}")


def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from studies.spec import StudySpec

    print(json.dumps(StudySpec.model_json_schema(), indent=2))
