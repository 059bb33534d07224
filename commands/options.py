"""Options that several commands share, and how a command answers."""

from __future__ import annotations

import json
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
