"""A deployment over HTTP, and what its log says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from commands.options import (
    HOME,
    STOPPED,
    HomeOption,
    JsonOption,
    ModelOption,
    StorageOption,
    TrackingOption,
    answer,
    refuse,
)

LogOption = Annotated[Path | None, typer.Option("--log", help="Folder of the log; default: in the home folder.")]


def serve(
    deploy: Annotated[Path, typer.Argument(help="A deployment folder.")],
    host: Annotated[str, typer.Option(help="Where to listen; elsewhere than here CHAMTUNE_TOKEN must be set.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    allow: Annotated[list[str] | None, typer.Option(help="A Host that clients name; again for each.")] = None,
    shadow: Annotated[Path | None, typer.Option(help="A deployment that answers the same, and is only logged.")] = None,
    split: Annotated[
        float, typer.Option(min=0, max=0.999, help="Share of users that the shadow answers instead.")
    ] = 0.0,
    texts: Annotated[bool, typer.Option("--texts", help="Keep texts: histories grow, and logs can be replayed.")] = (
        False
    ),
    keep: Annotated[int | None, typer.Option(min=1, help="Files of 64 MB that stay of each log; default: all.")] = None,
    log: LogOption = None,
    model: ModelOption = None,
    home: HomeOption = HOME,
) -> None:
    """Answer over HTTP: /predict, /feedback, /metrics; a new generation takes over while it runs."""
    from serving.place import Place
    from serving.run import named
    from serving.run import serve as run
    from serving.service import Service, Terms
    from serving.traffic import log_folder
    from studies.shown.logs import log_to

    with log_to(home):
        folder = log or log_folder(home, deploy)
        place = Place(deploy, model)
        other = None if shadow is None else Place(shadow, None, place.now.deployment)
        service = Service(place, Terms(folder, texts, split, keep), other)

        def bound(port: int) -> None:
            typer.echo(f"generation {place.now.generation} on http://{named(host)}:{port}, log in {folder}", err=True)

        run(service, host, port, tuple(allow or ()), bound)


def replay(
    log: Annotated[Path, typer.Argument(help="The folder of a server's log, with texts.")],
    config: Annotated[Path, typer.Option(help="A deployment folder.")],
    out: Annotated[Path | None, typer.Option(help="JSON Lines to write, a line an answer.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the config's model lies on this machine.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Answer logged questions with another config."""
    from personalization.deployment import Deployment
    from personalization.files import refuse_unwritable
    from serving.replay import replay as run
    from studies.shown.display import print_line
    from studies.shown.logs import log_to

    if out is not None:
        refuse_unwritable(out, log, config, model)
    with log_to(home, needed=False):
        found = run(log, Deployment.load(config, model), out)
    said = f"{found['answers']} answers, {found['changed']:.1%} of them others than were given"
    if found["labelled"]:
        then, now = found["accuracy_then"], found["accuracy_now"]
        said += f"; of {found['labelled']} with a label right: {then} then, {now} now"
    answer(as_json, found, lambda: print_line(said))


def monitor(
    log: Annotated[Path, typer.Argument(help="The folder of a server's log.")],
    deploy: Annotated[Path | None, typer.Option(help="The deployment; default: the one that the log names.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="A deployment that answers what has a label anew.")] = None,
    margin: Annotated[float, typer.Option(min=0, help="Difference in accuracy that is as good as none.")] = 0.02,
    users: Annotated[int | None, typer.Option(min=1, help="Users after whom it is inconclusive.")] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Roll back where it is worse, or a constraint is broken.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--retune", help="Tune again on the log where something drifted or is broken.")
    ] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Of --retune; default: 100.")] = None,
    home: HomeOption = HOME,
    storage: StorageOption = None,
    tracking: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a server's log says: constraints, calibration, drift, and which of two configs is better."""
    from personalization.errors import UsageError
    from serving.monitor import faults, reasons, report, watched
    from serving.report_text import lines
    from serving.retune import TRIALS, spec_of_retune
    from serving.retune import retune as tune
    from serving.traffic import about
    from studies.shown.display import print_line
    from studies.shown.logs import log_to

    if not again:
        refuse({"trials": trials}, "--retune; give both")
    if not rollback:
        refuse({"storage": storage, "tracking": tracking}, "--rollback; give both")
    place = deploy or (Path(about(log)["deploy"]) if about(log) else None)
    if place is None:
        raise UsageError(f"{log} does not say what it is of; give --deploy")
    with log_to(home):
        found = report(watched(log, place, baseline), margin, users)
        found["faults"], found["rolled_back"], found["retuned"] = faults(found), None, None
        if rollback and found["faults"]:
            found["rolled_back"] = _rolled_back(home, place, storage, tracking)
        why, since = reasons(found)
        try:
            if again and why:
                spec = spec_of_retune(place, log, home, trials or TRIALS, since=since)
                found["retuned"] = tune(spec, place, home, why=why)
        finally:  # what was found is worth knowing, whatever became of the study
            answer(as_json, found, lambda: print_line("\n".join(lines(found))))
    if found["retuned"] is not None and found["retuned"]["stopped_by"] is not None:
        raise typer.Exit(STOPPED + found["retuned"]["stopped_by"])
    if found["faults"]:
        raise typer.Exit(1)


def _rolled_back(home: Path, place: Path, storage: str | None, tracking: str | None) -> dict[str, Any]:
    """What a rollback gave, JSON-able; `reason`: why it could not be."""
    from personalization.errors import ChamtuneError
    from studies.verdict.deployments import roll_back_deployment

    try:
        generation, restored = roll_back_deployment(home, place, storage, tracking)
    except ChamtuneError as error:
        return {"generation": None, "restored_from": None, "reason": str(error)}
    return {"generation": generation, "restored_from": restored, "reason": None}


def retune(
    deploy: Annotated[Path, typer.Argument(help="A deployment folder.")],
    data: Annotated[Path, typer.Option(help="LaMP files, or the folder of a server's log, with texts.")],
    trials: Annotated[int, typer.Option(min=1, help="Finished trials in all.")] = 100,
    split: Annotated[str, typer.Option(help="users: confirmed on other users; time: on later questions.")] = "users",
    since: Annotated[str | None, typer.Option(help="Of a log: what was asked since then (UTC).")] = None,
    own: Annotated[
        bool, typer.Option("--by-user", help="Try strengths of each user's own, for users who lose by the common ones.")
    ] = False,
    every: Annotated[float | None, typer.Option(min=0.01, help="Hours after which it begins again, until stopped.")] = (
        None
    ),
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Tune a deployment again on new data; what is better takes its place."""
    import time
    from typing import get_args

    from personalization.errors import UsageError
    from serving.retune import Split, by_user, spec_of_retune
    from serving.retune import retune as run
    from studies.shown.display import print_line, print_promotion
    from studies.shown.logs import log_to
    from studies.shown.progress import RunDisplay

    if split not in get_args(Split):
        raise UsageError(f"--split {split}: there are {', '.join(get_args(Split))}")

    def show(found: dict[str, Any]) -> None:
        if found["stopped_by"] is None:
            print_promotion(found)
        else:
            print_line(f"stopped: {found['reason']}")

    while True:
        with log_to(home):
            spec = spec_of_retune(deploy, data, home, trials, split, since)  # type: ignore[arg-type]
            spec = by_user(spec) if own else spec
            with RunDisplay(spec) as display:
                result = run(spec, deploy, home, display, ["asked for" if every is None else f"every {every:g} hours"])
        answer(as_json, result, lambda found=result: show(found))  # type: ignore[misc]
        if result["stopped_by"] is not None:
            raise typer.Exit(STOPPED + result["stopped_by"])
        if every is None:
            break
        time.sleep(3600 * every)
    if not result["promoted"]:
        raise typer.Exit(3)
