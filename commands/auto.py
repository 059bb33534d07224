"""Data, a model and a number of minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.options import HOME, HomeOption, JsonOption, StorageOption, TrackingOption, answer


def auto(
    data: Annotated[str, typer.Option(help="A table, LaMP files, demo, or a spec (YAML) that names data and task.")],
    model: Annotated[str, typer.Option(help="demo, minilm, smollm2, a folder, a GGUF file or a hub id.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="In all runs together, promotion included.")] = 30.0,
    out: Annotated[Path, typer.Option(help="The folder of the deployment.")] = Path("deploy"),
    stages: Annotated[
        list[str] | None, typer.Option("--stage", help="A stage that may be used; may be repeated. Default: all.")
    ] = None,
    metric: Annotated[str, typer.Option(help="What is to improve.")] = "accuracy",
    constraints: Annotated[
        list[str] | None, typer.Option("--constraint", help='Such as "entropy>=0.6"; may be repeated.')
    ] = None,
    retriever: Annotated[
        str | None, typer.Option(help="A sentence encoder that finds similar items for a causal model, such as minilm.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask by the model's chat template.")] = False,
    mix_users: Annotated[
        bool, typer.Option("--mix-users/--no-mix-users", help="Whether other users' items may answer a user.")
    ] = True,
    like: Annotated[
        list[str] | None, typer.Option(help="A study whose best settings are tried first; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the searches, and of a planted world.")] = 0,
    name: Annotated[str | None, typer.Option(help="Of the race; its studies are NAME.ARM.")] = None,
    home: HomeOption = HOME,
    storage: StorageOption = None,
    tracking: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Race the ways to personalise for some minutes; promote the best, and write a page about it."""
    from personalization.errors import UsageError
    from studies.auto.page import write_page
    from studies.auto.plan import Plan, bounds, data_of, name_of
    from studies.auto.race import Race
    from studies.shown.consoles import notes
    from studies.shown.display import print_auto
    from studies.shown.logs import log_to
    from studies.shown.progress import ScoringDisplay
    from studies.spec import DIRECTIONS

    if metric not in DIRECTIONS:
        raise UsageError(f"--metric {metric}: there are {', '.join(DIRECTIONS)}")
    spec = {
        **data_of(data, home, name),
        "model": {"path": model, "chat": chat, "retriever": retriever},
        "optimize": {metric: DIRECTIONS[metric]},
        "constraints": bounds(constraints or []),
        "seed": seed,
        "storage": storage,
        "tracking": tracking,
    }
    plan = Plan(name or name_of(data), spec, minutes, tuple(stages or ()), mix_users, tuple(like or ()))
    with log_to(home), ScoringDisplay() as display:
        race = Race(plan, home, display, notes.print)
        verdict = race.run(out)
        found = write_page(race, verdict, out)
    answer(as_json, found, lambda: print_auto(found))
    if not found["promoted"]:
        raise typer.Exit(3)
