"""A deployment over HTTP, and what its log says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.options import HOME, HomeOption

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
    model: Annotated[str | None, typer.Option(help="Where the deployment's model lies on this machine.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Answer over HTTP: /predict, /feedback, /metrics; a new generation takes over while it runs."""
    from serving.run import serve as run
    from serving.run import service_of
    from serving.traffic import log_folder
    from studies.shown.logs import log_to

    with log_to(home):
        folder = log or log_folder(home, deploy)
        service = service_of(deploy, folder, shadow, split, texts, keep, model)
        typer.echo(f"generation {service.place.now.generation} on http://{host}:{port}, log in {folder}", err=True)
        run(service, host, port, tuple(allow or ()))
