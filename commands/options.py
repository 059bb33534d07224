"""Options that several commands share, what they open, and how a command answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from personalization.deployment import Deployment
    from studies.study import OpenStudy

HomeOption = Annotated[
    Path, typer.Option(envvar="CHAMTUNE_HOME", help="Folder of studies, tracking, caches and results.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, and nothing else.")]
StorageOption = Annotated[
    str | None, typer.Option(help="Database URL of the studies; default: studies.db in the home folder.")
]
TrackingOption = Annotated[str | None, typer.Option(help="MLflow URI; default: that of the study's spec.")]
ModelOption = Annotated[str | None, typer.Option(help="Where the deployment's model lies on this machine.")]
HOME = Path(".chamtune")
STOPPED = 128
"""Added to the number of a signal that stopped a run."""


def answer(as_json: bool, found: Any, show: Callable[[], None]) -> None:
    """The answer of a command to standard output: a table, or for scripts one line of JSON with the table beside it."""
    from studies.shown.consoles import beside

    with beside(as_json):
        show()
    if as_json:
        print(json.dumps(found))


def refuse(given: dict[str, Any], why: str) -> None:
    """UsageError for the first of these options that is given, and is of something else."""
    from personalization.errors import UsageError

    for name in (name for name, value in given.items() if value):
        raise UsageError(f"--{name} is of {why}")


@contextmanager
def opened_studies(names: Sequence[str], home: Path, storage: str | None) -> Iterator[list[OpenStudy]]:
    """Stored studies with their data and models, while progress is shown and the log is written."""
    from studies.shown.logs import log_to
    from studies.shown.progress import ScoringDisplay
    from studies.study import find_study, located_spec, open_study

    specs = [located_spec(find_study(name, home, storage)) for name in names]  # an unknown one makes no home
    with log_to(home), ScoringDisplay() as display:
        yield [open_study(one.model_copy(update={"storage": storage}), home, display.scoring) for one in specs]


@contextmanager
def opened_deployment(config: str, home: Path, tracking: str | None, model: str | None) -> Iterator[Deployment]:
    """A deployment of a folder or of MLflow's registry, while progress is shown and the log is written."""
    from personalization.deployment import Deployment
    from studies.shown.logs import log_to
    from studies.shown.progress import ScoringDisplay
    from studies.verdict.deployments import located

    with log_to(home, needed=False), located(config, home, tracking) as folder, ScoringDisplay() as display:
        yield Deployment.load(folder, model, display.scoring)
