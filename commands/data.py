"""Data sets: check, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.options import JsonOption, answer


def check(
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
    from tracking.data_report import check as report_of

    if split not in (None, *SPLITS):
        raise UsageError(f"--split {split}: there are {', '.join(SPLITS)}")
    if path.suffix in (".yaml", ".yml"):
        spec = load_spec(str(path))
        report = report_of(lambda: read_data(spec))
    else:
        report = report_of(lambda: read_source(path, split))
    answer(as_json, report, lambda: print_data_check(report))
    if not report["usable"]:
        raise typer.Exit(65)


def export(
    preset: Annotated[str, typer.Argument(help="demo or demo-null")],
    folder: Path,
    seed: Annotated[int, typer.Option(help="Draws the users and questions.")] = 0,
    users: Annotated[int, typer.Option(min=1, help="How many users.")] = 500,
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
