"""The pages of `chamtune ui`, those of the studies and those of servers: `python -P -m serving.pages.app HOST PORT`.

The environment says where things are, as for the pages of the studies; CHAMTUNE_LOGS names further folders of logs.
"""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from personalization.errors import DataError, UsageError
from serving.monitor import doubts, standing
from serving.pages import drawing
from serving.pages.logs import Logs
from studies.shown.pages.app import application as of_studies
from studies.shown.pages.app import pages, serve
from studies.shown.pages.house import House, house_of_environment
from studies.storage import whereabouts

HERE = Path(__file__).parent
LOGS = "CHAMTUNE_LOGS"
"""The environment variable with further folders of logs, parted as in PATH."""
Name = Annotated[str, Query(max_length=300, description="A log by its name.")]
Asked = Annotated[str | None, Query()]


def application(house: House, logs: Logs) -> FastAPI:
    """The pages of the studies of a house, and of its servers."""
    templates = pages(HERE / "templates", elsewhere={"Served": "/served"})
    templates.globals |= {"traffic": drawing, "standing": standing, "doubts": doubts}
    templates.globals |= {"quote": quote, "at_home": whereabouts(house.home, None)}
    app = of_studies(house, templates)
    _add_pages(app, logs, templates)
    _add_api(app, logs)
    return app


def _add_pages(app: FastAPI, logs: Logs, templates: Environment) -> None:
    @app.get("/served", response_class=HTMLResponse, include_in_schema=False)
    def served() -> str:
        return templates.get_template("served.html").render(logs=logs.overview(), home=str(logs.home))

    @app.get("/monitor", response_class=HTMLResponse, include_in_schema=False)
    def monitor(log: Asked = None) -> str:
        if log is None:
            raise UsageError("Choose a log of a server: /monitor?log=NAME. They are under Served, above.")
        state = logs.state(log)
        try:
            found = logs.report(log)
        except DataError as error:
            return templates.get_template("silent.html").render(log=log, state=state, said=str(error))
        return templates.get_template("monitor.html").render(found=found)


def _add_api(app: FastAPI, logs: Logs) -> None:
    @app.get("/api/served")
    def served() -> list[dict[str, Any]]:
        """A row a log: deployment, generation, last answer, and a state that changes when something is logged."""
        return logs.overview()

    @app.get("/api/monitor", responses={404: {"description": "no such log, or nothing in it"}})
    def monitor(log: Name) -> dict[str, Any]:
        """Everything that a page of monitoring shows."""
        return logs.report(log)


def main() -> None:
    """Serve until the process is ended."""
    house = house_of_environment()
    further = [Path(path) for path in os.environ.get(LOGS, "").split(os.pathsep) if path]
    serve(application(house, Logs(house, further)), house)


if __name__ == "__main__":
    main()
