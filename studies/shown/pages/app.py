"""The pages of the studies as a FastAPI application; `serving.pages` adds those of servers and runs it.

It only reads: nothing but GET and HEAD is answered, and only under a loopback name, so that no page elsewhere can reach
it by another name of this machine. Pages are made on the server, every text escaped; a strict content policy lets in
nothing from elsewhere.

The environment says where things are: CHAMTUNE_STORAGE, CHAMTUNE_HOME, CHAMTUNE_DASHBOARD and CHAMTUNE_MLFLOW (where
these pages are, if they are served), MLFLOW_BACKEND_STORE_URI.
"""

from __future__ import annotations

import calendar
import csv
import io
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from personalization.errors import ChamtuneError
from studies.insights.history import GROUPS
from studies.insights.report import harmless
from studies.insights.slices import LEADING, MOST
from studies.insights.values import short
from studies.shown.pages import drawing
from studies.shown.pages.house import House
from studies.storage import reason

HERE = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; " + (
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
OF_RACE = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The page of a race is one file, with its style in it and no script."""
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
Names = Annotated[list[str], Query(alias="study", min_length=1, max_length=20, description="Several by repeating it.")]
Goal = Annotated[
    str | None, Query(max_length=200, description="Of studies with several goals: by which; else the first.")
]
Answer = dict[str, Any]
PARTS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
"""Of a duration, in seconds."""


def number(value: Any, digits: int = 4) -> str:
    """A number in a few characters; texts as they are, nothing where there is none."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign; one that rounds to nothing has none."""
    told = f"{value:+.{digits}f}"
    return told if float(told) else told[1:]


def lasted(seconds: float) -> str:
    """A duration in its two largest units, days to seconds."""
    if seconds < 1:
        return "under a second"
    left, found = round(seconds), list[str]()
    for name, size in PARTS:
        count, left = divmod(left, size)
        if count:
            found.append(f"{count} {name}{'s' if count > 1 else ''}")
        elif found:
            break
    return " ".join(found[:2])


def period(seconds: float) -> str:
    """A duration in ISO 8601."""
    return f"PT{round(seconds)}S"


def day(told: str) -> str:
    """A time in ISO 8601."""
    at = datetime.fromisoformat(told)
    return f"{at.day} {calendar.month_abbr[at.month]} {at.year}, {at:%H:%M}"


def pages(*further: Path, elsewhere: Mapping[str, str] | None = None) -> Environment:
    """The templates: everything that is put in is escaped, and an unknown name is an error.

    `further`: folders of more templates; `elsewhere`: name -> path of pages beside those of the studies.
    """
    found = Environment(
        loader=FileSystemLoader([HERE / "templates", *further]),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(number=number, signed=signed, short=short, lasted=lasted, period=period, day=day)
    found.globals |= {"groups": GROUPS, "draw": drawing, "elsewhere": dict(elsewhere or {})}
    found.globals["dots"] = {"most": MOST, "leading": LEADING}
    return found


def application(house: House, templates: Environment | None = None) -> FastAPI:
    """The application of a house."""
    app = FastAPI(
        title="chamtune", description="Studies and what they teach; read only.", docs_url=None, redoc_url=None
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    templates = templates or pages()
    templates.globals["here"] = house.here

    @app.middleware("http")
    async def _guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.method not in ("GET", "HEAD"):
            return JSONResponse({"detail": "this page only shows"}, 405, {"Allow": "GET, HEAD", **HEADERS})
        asked = request.method
        request.scope["method"] = "GET"
        try:
            response = await answer(request)
        finally:
            request.scope["method"] = asked
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response if asked == "GET" else Response(None, response.status_code, response.headers)

    def _problem(request: Request, said: str, status: int) -> Response:
        if request.url.path.startswith("/api/") or request.url.path.endswith(".csv"):
            return JSONResponse({"detail": said}, status, HEADERS)
        return HTMLResponse(templates.get_template("problem.html").render(problem=said), status, HEADERS)

    @app.exception_handler(ChamtuneError)
    async def _said(request: Request, error: ChamtuneError) -> Response:
        return _problem(request, str(error), 404)

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> Response:
        """The server logs the traceback: whoever handles what nobody foresaw is told, and it is raised again."""
        said = f"{type(error).__name__}: {reason(error)}; logs/pages.log in the home folder shows where"
        return _problem(request, said, 500)

    @app.exception_handler(RequestValidationError)
    async def _unclear(request: Request, error: RequestValidationError) -> Response:
        if request.url.path != "/insights":
            return await request_validation_exception_handler(request, error)
        return _problem(request, "Choose one study, or up to 20 to compare.", 422)

    _add_api(app, house)
    _add_pages(app, house, templates)
    return app


def _add_pages(app: FastAPI, house: House, templates: Environment) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def start() -> str:
        shown = {"studies": house.overview(), "races": house.races(), "home": str(house.home)}
        return templates.get_template("start.html").render(shown)

    @app.get("/race", response_class=HTMLResponse, include_in_schema=False)
    def race(name: Annotated[str, Query(max_length=200)]) -> Response:
        return HTMLResponse(house.race(name), headers={"Content-Security-Policy": OF_RACE})

    @app.get("/insights", response_class=HTMLResponse, include_in_schema=False)
    def insights(names: Names, goal: Goal = None) -> str:
        return templates.get_template("insights.html").render(found=house.page(names, goal))


def _add_api(app: FastAPI, house: House) -> None:
    @app.get("/api/studies")
    def studies() -> list[Answer]:
        """A row a study: counts, best feasible value, activity, verdict, deployments, links."""
        return house.overview()

    @app.get("/api/races")
    def races() -> list[Answer]:
        """A row a race: leader, its study, whether it was promoted and why, accuracy on confirm users."""
        return house.races()

    @app.get("/api/insights", responses={404: {"description": "no such study"}})
    def insights(names: Names, goal: Goal = None) -> Answer:
        """Everything that a page of insights shows; several studies are compared by rank."""
        return house.insights(names, goal)

    @app.get("/api/suggestions", responses={404: {"description": "no such study"}})
    def suggestions(names: Names, goal: Goal = None) -> list[Answer]:
        """What to try next: kind, change, reason, and the whole point."""
        found: list[Answer] = house.insights(names, goal)["suggestions"]
        return found

    @app.get("/insights.csv", responses={404: {"description": "no such study"}})
    def table(names: Names, goal: Goal = None) -> Response:
        """The value scores as CSV."""
        rows = [
            {"group": group, "parameter": entry["field"], **value}
            for group, entries in house.insights(names, goal)["analysis"].items()
            for entry in entries
            for value in entry["values"]
        ]
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["group", "parameter", "value"])
        writer.writeheader()
        writer.writerows([{key: harmless(value) for key, value in row.items()} for row in rows])
        attached = {"Content-Disposition": 'attachment; filename="insights.csv"'}
        return Response(file.getvalue(), media_type="text/csv; charset=utf-8", headers=attached)


def serve(app: FastAPI, house: House) -> None:
    """Serve on the HOST and PORT of the command line until the process is ended."""
    host, port = sys.argv[1:]
    threading.Thread(target=house.read_all, daemon=True).start()
    uvicorn.run(app, host=host, port=int(port), log_level="warning", access_log=False)
