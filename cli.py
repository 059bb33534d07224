"""The `chamtune` command: parse, call one function, print.

Heavy rooms are imported inside the commands, so that `chamtune --help` is quick. Exit codes follow sysexits (64 usage,
65 data, 69 unavailable, 70 internal); 3 is a refused promotion, 1 a study without a feasible trial.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

HomeOption = Annotated[Path, typer.Option(help="Folder of studies, tracking, caches and results.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
StorageOption = Annotated[str | None, typer.Option(help="Optuna storage URL; default: studies.db in the home folder.")]
HOME = Path(".chamtune")
CLI_USAGE, USAGE, IO_ERROR = 2, 64, 74
"""What typer exits with on wrong arguments, and what we do; what we exit with when a disk or file fails."""

app = typer.Typer(
    help="Find the best way to personalise an LLM classifier, prove it, and deploy it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Check and export data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.callback()
def options(_debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Find the best way to personalise an LLM classifier, prove it, and deploy it."""


@app.command()
def run(
    spec: Annotated[str, typer.Argument(metavar="SPEC_OR_PRESET", help="A YAML file, or a preset's name.")],
    data: Annotated[Path | None, typer.Option(help="LaMP files, in the place of the spec's.")] = None,
    trials: Annotated[int | None, typer.Option(help="Finished trials in all, earlier runs included.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed; the study is then named NAME-seedS.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name for the study.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Create or resume a study and run it to its number of trials."""
    from studies.display import RunDisplay, print_result
    from studies.logs import log_to
    from studies.runner import run_study
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
        result = run_study(loaded, home, display)
    print_result(result, loaded)
    if as_json:
        print(json.dumps(result.as_json()))
    if result.best is None and result.stopped_by is None:
        raise typer.Exit(1)


@app.command()
def studies(home: HomeOption = HOME, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """List the studies of a home folder."""
    from studies.display import print_studies
    from studies.show import list_studies

    rows = list_studies(home, storage)
    print_studies(rows)
    if as_json:
        print(json.dumps(rows))


@app.command()
def show(study: str, home: HomeOption = HOME, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Show one study: spec, counts, best trials."""
    from studies.display import print_study
    from studies.show import describe_study

    description = describe_study(study, home, storage)
    print_study(description)
    if as_json:
        print(json.dumps(description))


@app.command()
def promote(
    study: str,
    out: Annotated[Path, typer.Option(help="The deploy config to write.")] = Path("deploy.yaml"),
    home: HomeOption = HOME,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test the study's best on users that no trial saw; write the deploy config if it holds."""
    from studies.display import ScoringDisplay, print_promotion
    from studies.logs import log_to
    from studies.promotion import promote as promote_study
    from studies.study import find_study, located_spec, open_study

    spec = located_spec(find_study(study, home, storage))
    with log_to(home), ScoringDisplay() as display:
        opened = open_study(spec.model_copy(update={"storage": storage}), home, display.scoring)
        result = promote_study(opened, out)
    print_promotion(result)
    if as_json:
        print(json.dumps(result))
    if not result["promoted"]:
        raise typer.Exit(3)


@app.command()
def rollback(config: Path, home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Bring back the deploy config that the present one replaced."""
    from studies.promotion import roll_back_deployment

    generation, restored = roll_back_deployment(home, config)
    typer.echo(f"{config}: generation {generation}, with the content of generation {restored}")
    if as_json:
        print(json.dumps({"generation": generation, "restored_from": restored}))


@app.command()
def predict(
    config: Annotated[Path, typer.Option(help="A deploy config.")],
    questions: Annotated[Path, typer.Option(help="LaMP questions (a *_questions.json file, JSON Lines, or a folder).")],
    out: Annotated[Path, typer.Option(help="The LaMP predictions file to write.")],
    home: HomeOption = HOME,
) -> None:
    """Answer questions with a deploy config; writes the official LaMP predictions file."""
    from personalization.data.lamp import read_dataset, write_predictions
    from personalization.deployment import Deployment

    dataset = read_dataset(questions)
    deployment = Deployment.load(config, home / "cache" / "scores")
    answers = {p.id: p.label for p in deployment.predict(dataset.questions)}
    write_predictions(out, dataset.task, answers)
    typer.echo(f"{len(answers)} predictions in {out}")


@app.command()
def compare(
    studies: Annotated[list[str], typer.Argument(help="Studies of the same data; gains are over the first.")],
    out: Annotated[Path, typer.Option(help="Where the figure goes.")] = Path("comparison.png"),
    home: HomeOption = HOME,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the best feasible trials of studies on the select users."""
    from personalization.files import write_atomic
    from studies.comparison import compare as compare_studies
    from studies.comparison import comparison_figure
    from studies.display import ScoringDisplay, print_comparison
    from studies.logs import log_to
    from studies.study import find_study, located_spec, open_study

    with log_to(home), ScoringDisplay() as display:
        opened = []
        for study in dict.fromkeys(studies):
            spec = located_spec(find_study(study, home, storage)).model_copy(update={"storage": storage})
            opened.append(open_study(spec, home, display.scoring))
        result = compare_studies(opened)
    write_atomic(out, comparison_figure(result))
    print_comparison(result, out)
    if as_json:
        print(json.dumps(result))


@app.command()
def summary(folder: Path, as_json: JsonOption = False) -> None:
    """Show the summary of a result folder, and which file it was read from."""
    from studies.display import print_summary
    from tracking.report import read_summary

    found = read_summary(folder)
    print_summary(found)
    if as_json:
        print(json.dumps({"source": found.source, "metrics": {row[0]: row[1:] for row in found.rows}}))


@app.command()
def ui(
    home: HomeOption = HOME,
    storage: StorageOption = None,
    tracking: Annotated[str | None, typer.Option(help="MLflow store; default: mlflow.db in the home folder.")] = None,
    dashboard_port: int = 8080,
    mlflow_port: int = 5000,
) -> None:
    """Serve optuna-dashboard and MLflow on this machine until Ctrl-C."""
    from studies.storage import storage_url
    from studies.ui import Addresses, serve

    def ready(addresses: Addresses) -> None:
        typer.echo(f"optuna-dashboard  {addresses.dashboard}\nMLflow            {addresses.mlflow}\nCtrl-C stops both")
        sys.stdout.flush()

    home.mkdir(parents=True, exist_ok=True)
    serve(home, storage_url(home, storage), tracking, (dashboard_port, mlflow_port), ready)


@app.command()
def sync(
    study: str,
    home: HomeOption = HOME,
    tracking: Annotated[str | None, typer.Option(help="MLflow URI; default: mlflow.db in the home folder.")] = None,
) -> None:
    """Send to MLflow what an earlier run could not."""
    from personalization.errors import UnavailableError
    from tracking.spool import Sender, Spool, tracking_uri

    uri = tracking_uri(home, tracking)
    waiting = 0
    for path in sorted((home / "spool").glob(f"{study}-????????????.jsonl")):
        spool = Spool(home, study, path.stem.rpartition("-")[2])
        waiting += Sender(spool, uri).finish(600)
    if waiting:
        raise UnavailableError(f"{waiting} records still wait for {uri}; see {home / 'logs' / 'tracking.log'}")
    typer.echo(f"everything of {study} is in {uri}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from studies.spec import StudySpec

    print(json.dumps(StudySpec.model_json_schema(), indent=2))


@data_app.command("check")
def data_check(path: Path, as_json: JsonOption = False) -> None:
    """Report counts, labels, trivial baselines, the smallest detectable difference, and every defect."""
    from studies.display import print_data_check
    from tracking.data_report import check

    report = check(path)
    print_data_check(report)
    if as_json:
        print(json.dumps(report))
    if not report["usable"]:
        raise typer.Exit(65)


@data_app.command("export")
def data_export(
    preset: Annotated[str, typer.Argument(help="demo or demo-null")],
    folder: Path,
    seed: Annotated[int, typer.Option(help="Draws the users and questions.")] = 0,
    users: Annotated[int, typer.Option(help="How many users.")] = 500,
) -> None:
    """Write the planted world as official LaMP files."""
    from personalization.data.demo.world import make_world
    from personalization.data.lamp import write_dataset
    from personalization.errors import UsageError

    if preset not in ("demo", "demo-null"):
        raise UsageError(f"no world {preset!r}; there are demo and demo-null")
    dataset = make_world(seed, users, null=preset == "demo-null").dataset
    for path in write_dataset(folder, preset, dataset):
        typer.echo(str(path))


def main() -> None:
    """Run the command line; errors meant for the user are one line and an exit code."""
    from personalization.errors import ChamtuneError
    from personalization.threads import wait_asleep

    wait_asleep()
    try:
        app()
    except ChamtuneError as error:
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(IO_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        sys.exit(USAGE if end.code == CLI_USAGE else end.code)


if __name__ == "__main__":
    main()
