"""Deployments: promote, roll back, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.options import (
    HOME,
    HomeOption,
    JsonOption,
    ModelOption,
    StorageOption,
    TrackingOption,
    answer,
    opened_deployment,
    opened_studies,
)


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
    from studies.verdict.promotion import promote as promote_study

    with opened_studies([study], home, storage) as (opened,):
        result = promote_study(opened, out, replace_unreadable, cold_start)
    answer(as_json, result, lambda: print_promotion(result))
    if not result["promoted"]:
        raise typer.Exit(3)


def rollback(
    config: Path,
    to: Annotated[int | None, typer.Option(help="A kept generation; default: the one that was replaced.")] = None,
    home: HomeOption = HOME,
    storage: StorageOption = None,
    tracking: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring back the deployment that the present one replaced, or any kept generation of it."""
    from studies.shown.display import print_line
    from studies.shown.logs import log_to
    from studies.verdict.deployments import roll_back_deployment

    with log_to(home):
        generation, restored = roll_back_deployment(home, config, storage, tracking, to)
    said = f"{config}: generation {generation}, with the content of generation {restored}"
    answer(as_json, {"generation": generation, "restored_from": restored}, lambda: print_line(said))


def export(
    config: Annotated[str, typer.Argument(help="A deployment folder, or models:/NAME@champion of MLflow.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    questions: Annotated[Path, typer.Option(help="Questions of the users whose adapters or vectors are wanted.")],
    model: ModelOption = None,
    home: HomeOption = HOME,
    tracking: TrackingOption = None,
) -> None:
    """Write a deployment's LoRA for vLLM and PEFT, its steering vectors for EasySteer and llama.cpp."""
    with opened_deployment(config, home, tracking, model) as deployment:
        lines = deployment.export(deployment.read(questions).usable().questions, out)
    for line in lines:
        typer.echo(line)


def predict(
    config: Annotated[str, typer.Option(help="A deployment folder, or models:/NAME@champion of MLflow.")],
    questions: Annotated[
        Path, typer.Option(help="LaMP questions (file, JSON Lines, or folder), or a table like the study's.")
    ],
    out: Annotated[Path, typer.Option(help="What to write: a .csv table, or else a LaMP predictions file.")],
    model: ModelOption = None,
    home: HomeOption = HOME,
    tracking: TrackingOption = None,
) -> None:
    """Answer questions with a deployment: of a table the rows without a label."""
    from personalization.data.lamp import files_read, write_predictions
    from personalization.data.table import write_table
    from personalization.files import refuse_unwritable

    refuse_unwritable(out, *files_read(questions), config, model)
    with opened_deployment(config, home, tracking, model) as deployment:
        read = deployment.read(questions)
        asked = read.usable().questions
        answers = deployment.predict(asked)
    if out.suffix.lower() == ".csv":
        users = [question.user_id for question in asked]
        write_table(out, [(a.id, user, a.label, a.log_probs[a.label]) for a, user in zip(answers, users, strict=True)])
    else:
        write_predictions(out, read.name, {answer.id: answer.label for answer in answers}, read.numbers)
    typer.echo(f"{len(answers)} predictions in {out}")
