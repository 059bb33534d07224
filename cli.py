"""The `chamtune` command: parse, call one function, print.

Heavy rooms are imported inside the commands, so that `chamtune --help` is quick. Exit codes follow sysexits (64 usage,
65 data, 69 unavailable, 70 internal); 3 is a refused promotion, 1 a study without a feasible trial, 128 + n a run that
signal n stopped.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

HomeOption = Annotated[
    Path, typer.Option(envvar="CHAMTUNE_HOME", help="Folder of studies, tracking, caches and results.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, and nothing else.")]
StorageOption = Annotated[str | None, typer.Option(help="Optuna storage URL; default: studies.db in the home folder.")]
TrackingOption = Annotated[str | None, typer.Option(help="MLflow URI; default: that of the study's spec.")]
HOME = Path(".chamtune")
USAGE, UNAVAILABLE, INTERNAL, IO_ERROR, STOPPED = 64, 69, 70, 74, 128
"""Exit codes: wrong arguments, a storage that fails, a fault of ours, a disk or file that fails, and what is added to
the number of a signal."""
ARGUMENTS_ERROR: Any = typer.BadParameter.__base__
"""What typer raises for wrong arguments."""
ANYWHERE = {"--debug": "debug", "--quiet": "quiet", "-q": "quiet", "--verbose": "verbose", "-v": "verbose"}
"""Options that may stand anywhere."""

app = typer.Typer(
    help="Find the best way to personalise an LLM classifier, prove it, and deploy it.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Check and export data sets.")
app.add_typer(data_app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"chamtune {version('chamtune')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback. May stand anywhere.")] = False,
    _quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables. May stand anywhere.")] = False,
    _verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log. May stand anywhere.")] = False,
) -> None:
    """Find the best way to personalise an LLM classifier, prove it, and deploy it."""


def _answer(as_json: bool, found: Any, show: Callable[[], None]) -> None:
    """The answer of a command to standard output: a table, or for scripts one line of JSON with the table beside it."""
    from studies.shown.consoles import beside

    with beside(as_json):
        show()
    if as_json:
        print(json.dumps(found))


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
    from studies.runner import run_study
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
        result = run_study(loaded, home, display)
    _answer(as_json, result.as_json(), lambda: print_result(result, loaded))
    if result.stopped_by is not None:
        raise typer.Exit(STOPPED + result.stopped_by)
    if result.best is None:
        raise typer.Exit(1)


@app.command()
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
    from studies.beginning import begin
    from studies.shown.display import print_beginning

    found = begin(table, {"user": user, "text": text, "label": label, "time": time}, out, name)
    _answer(as_json, found, lambda: print_beginning(found))


@app.command()
def studies(home: HomeOption = HOME, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """List the studies of a home folder."""
    from studies.shown.display import print_studies
    from studies.shown.show import list_studies

    rows = list_studies(home, storage)
    _answer(as_json, rows, lambda: print_studies(rows))


@app.command()
def show(study: str, home: HomeOption = HOME, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Show one study: spec, counts, best trials."""
    from studies.shown.display import print_study
    from studies.shown.show import describe_study

    description = describe_study(study, home, storage)
    _answer(as_json, description, lambda: print_study(description))


@app.command()
def promote(
    study: str,
    out: Annotated[Path, typer.Option(help="The folder of the deployment.")] = Path("deploy"),
    replace_unreadable: Annotated[
        bool, typer.Option("--replace-unreadable", help="Set a config aside that cannot be read, untested.")
    ] = False,
    cold_start: Annotated[
        bool,
        typer.Option("--cold-start/--no-cold-start", help="Accuracy by history items given; up to six more passes."),
    ] = True,
    home: HomeOption = HOME,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test the study's best on users that no trial saw; write a deployment folder if it holds."""
    from studies.shown.display import print_promotion
    from studies.shown.logs import log_to
    from studies.shown.progress import ScoringDisplay
    from studies.study import find_study, located_spec, open_study
    from studies.verdict.promotion import promote as promote_study

    spec = located_spec(find_study(study, home, storage))
    with log_to(home), ScoringDisplay() as display:
        opened = open_study(spec.model_copy(update={"storage": storage}), home, display.scoring)
        result = promote_study(opened, out, replace_unreadable, cold_start)
    _answer(as_json, result, lambda: print_promotion(result))
    if not result["promoted"]:
        raise typer.Exit(3)


@app.command()
def rollback(
    config: Path,
    home: HomeOption = HOME,
    storage: StorageOption = None,
    tracking: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring back the deployment that the present one replaced."""
    from studies.shown.display import print_line
    from studies.shown.logs import log_to
    from studies.verdict.deployments import roll_back_deployment

    with log_to(home):
        generation, restored = roll_back_deployment(home, config, storage, tracking)
    said = f"{config}: generation {generation}, with the content of generation {restored}"
    _answer(as_json, {"generation": generation, "restored_from": restored}, lambda: print_line(said))


@app.command()
def predict(
    config: Annotated[str, typer.Option(help="A deployment folder, or models:/NAME@champion of MLflow.")],
    questions: Annotated[
        Path, typer.Option(help="LaMP questions (file, JSON Lines, or folder), or a table like the study's.")
    ],
    out: Annotated[Path, typer.Option(help="What to write: a .csv table, or else a LaMP predictions file.")],
    model: Annotated[str | None, typer.Option(help="Where the deployment's model lies on this machine.")] = None,
    home: HomeOption = HOME,
    tracking: TrackingOption = None,
) -> None:
    """Answer questions with a deployment: of a table the rows without a label."""
    from personalization.data.lamp import write_predictions
    from personalization.data.table import write_table
    from personalization.deployment import Deployment
    from studies.shown.logs import log_to
    from studies.verdict.deployments import located

    with log_to(home), located(config, home, tracking) as folder:
        deployment = Deployment.load(folder, model)
        read = deployment.read(questions)
        asked = read.usable().questions
        answers = deployment.predict(asked)
    if out.suffix.lower() == ".csv":
        users = [question.user_id for question in asked]
        write_table(out, [(a.id, user, a.label, a.log_probs[a.label]) for a, user in zip(answers, users, strict=True)])
    else:
        write_predictions(out, read.name, {answer.id: answer.label for answer in answers}, read.numbers)
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
    from studies.shown.display import print_comparison
    from studies.shown.logs import log_to
    from studies.shown.progress import ScoringDisplay
    from studies.study import find_study, located_spec, open_study
    from studies.verdict.comparison import compare as compare_studies
    from studies.verdict.comparison import comparison_figure

    with log_to(home), ScoringDisplay() as display:
        opened = []
        for study in dict.fromkeys(studies):
            spec = located_spec(find_study(study, home, storage)).model_copy(update={"storage": storage})
            opened.append(open_study(spec, home, display.scoring))
        result = compare_studies(opened)
    write_atomic(out, comparison_figure(result))
    _answer(as_json, result, lambda: print_comparison(result, out))


@app.command()
def summary(folder: Path, as_json: JsonOption = False) -> None:
    """Show the summary of a result folder, and which file it was read from."""
    from studies.shown.display import print_summary
    from tracking.report import read_summary

    found = read_summary(folder)
    metrics = {row[0]: row[1:] for row in found.rows}
    _answer(as_json, {"source": found.source, "metrics": metrics}, lambda: print_summary(found))


@app.command()
def ui(
    home: HomeOption = HOME,
    storage: StorageOption = None,
    tracking: TrackingOption = None,
    dashboard_port: int = 8080,
    mlflow_port: int = 5000,
    write: Annotated[bool, typer.Option("--write", help="Let the dashboard's page change and delete studies.")] = False,
) -> None:
    """Serve optuna-dashboard and MLflow on this machine until Ctrl-C."""
    from studies.shown.ui import Pages, serve
    from studies.storage import storage_url

    def ready(pages: Pages) -> None:
        typer.echo(f"optuna-dashboard  {pages.dashboard}\nMLflow            {pages.mlflow}  of {pages.store}")
        for study, page in pages.studies.items():
            typer.echo(f"  {study}  {page}")
        typer.echo("Ctrl-C stops both")
        sys.stdout.flush()

    home.mkdir(parents=True, exist_ok=True)
    serve(home, storage_url(home, storage), tracking, (dashboard_port, mlflow_port), ready, write)


@app.command()
def sync(study: str, home: HomeOption = HOME, storage: StorageOption = None, tracking: TrackingOption = None) -> None:
    """Send to MLflow what an earlier run could not."""
    from studies.sync import sync as sync_study

    typer.echo(f"everything of {study} is in {sync_study(study, home, storage, tracking)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from studies.spec import StudySpec

    print(json.dumps(StudySpec.model_json_schema(), indent=2))


@data_app.command("check")
def data_check(
    path: Annotated[
        Path, typer.Argument(help="LaMP questions (folder or file), or a spec (YAML), read as a run would.")
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="Read as data.split users, files or time does; default: files where there are train and dev."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Report counts, labels, trivial baselines, the smallest detectable difference, and every defect."""
    from personalization.data.sources import SPLITS, read_source
    from personalization.errors import UsageError
    from studies.data import read_data
    from studies.shown.display import print_data_check
    from studies.spec import load_spec
    from tracking.data_report import check

    if split not in (None, *SPLITS):
        raise UsageError(f"--split {split}: there are {', '.join(SPLITS)}")
    if path.suffix in (".yaml", ".yml"):
        spec = load_spec(str(path))
        report = check(lambda: read_data(spec))
    else:
        report = check(lambda: read_source(path, split))
    _answer(as_json, report, lambda: print_data_check(report))
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
    """Run the command line; every error is one line and an exit code, with the traceback where --debug is given."""
    from personalization.threads import wait_asleep
    from studies.shown.consoles import speak

    wait_asleep()
    given = {ANYWHERE[argument] for argument in sys.argv[1:] if argument in ANYWHERE}
    arguments = [argument for argument in sys.argv[1:] if argument not in ANYWHERE]
    try:
        speak("quiet" not in given, "verbose" in given)
        groups = [[], *([group.name] for group in app.registered_groups)]
        code = app([*arguments, "--help"] if arguments in groups else arguments, "chamtune", standalone_mode=False)
    except ARGUMENTS_ERROR as error:
        command = error.ctx.command_path if error.ctx else "chamtune"
        print(f"error: {error.format_message().rstrip('.')}; `{command} -h` tells more", file=sys.stderr)
        sys.exit(USAGE)
    except Exception as error:
        if "debug" in given:
            traceback.print_exc()
        message, code = _told(error)
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _told(error: Exception) -> tuple[str, int]:
    """One line for an error, and its exit code."""
    from personalization.errors import ChamtuneError, first_line

    if isinstance(error, ChamtuneError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}", IO_ERROR
    from studies.storage import STORAGE_ERRORS, reason

    if isinstance(error, STORAGE_ERRORS):
        return f"the storage failed: {reason(error)}; the same command goes on when it is back", UNAVAILABLE
    return f"{type(error).__name__}: {first_line(error)}; this should not happen, --debug shows where it did", INTERNAL


if __name__ == "__main__":
    main()
