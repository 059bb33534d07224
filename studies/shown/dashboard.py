"""optuna-dashboard with feasibility shown right: `python -P -m studies.shown.dashboard HOST PORT`.

The stock dashboard (0.21) reads constraints in the form of Optuna 4 only, so that it draws every Optuna 5 trial as
feasible, and names the best trial and the Pareto front without regard to feasibility. Here it is handed a storage that
shows each trial's constraints in the form it knows and names the best feasible trial, and its Pareto routine is given
the feasible trials only. Requests for another host name are refused, and so is everything but reading, unless writing
was asked for; then writes from another origin are.

The storage's URL stands in the environment variable CHAMTUNE_STORAGE; CHAMTUNE_WRITE=yes allows writing.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import _app as dashboard_app

from studies.constraints import feasible
from studies.storage import open_storage

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
LIST_FORM = "constraints"


def _with_list_form(trial: FrozenTrial) -> FrozenTrial:
    if not trial.constraints or LIST_FORM in trial.system_attrs:
        return trial
    shown = copy.copy(trial)
    values = [trial.constraints[name] for name in sorted(trial.constraints)]
    shown.system_attrs = {**trial.system_attrs, LIST_FORM: values}
    return shown


class FeasibleView(RDBStorage):
    """A storage as the dashboard reads it."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials, each with its constraints also in the old list form, in the order of their names."""
        trials = super().get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return [_with_list_form(trial) for trial in trials]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible trial; while there is none, the one nearest to being feasible."""
        complete = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            raise ValueError("No trials are completed yet.")
        sign = -1 if self.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE else 1

        def rank(trial: FrozenTrial) -> tuple[float, float]:
            broken = sum(max(0.0, value) for value in trial.constraints.values())
            return broken, sign * (trial.value if trial.value is not None else float("inf"))

        return min(complete, key=rank)


def guarded(app: App, write: bool = False) -> App:
    """Refuse requests whose Host is not a loopback name (DNS rebinding), and writes: all, or those of other origins."""

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        refusal = _refusal(environ, write)
        if refusal is not None:
            status, said = refusal
            start_response(status, [("Content-Type", "text/plain")])
            return [f"{said}\n".encode()]
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")
        return app(environ, start_response)

    return checked


def _refusal(environ: dict[str, Any], write: bool) -> tuple[str, str] | None:
    host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return "400 Bad Request", "the Host header is no host"
    if name not in ("127.0.0.1", "localhost"):
        return "403 Forbidden", "only requests for this machine are answered"
    if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
        return None
    if not write:
        return "403 Forbidden", "this page only shows; `chamtune ui --write` lets it change studies"
    if origin is not None and origin != f"http://{host}":
        return "403 Forbidden", "only pages of this server may change studies"
    return None


def _feasible_front(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    chosen: list[FrozenTrial] = _front(trials=[t for t in trials if feasible(t)], directions=directions)
    return chosen


_front = dashboard_app.get_pareto_front_trials
dashboard_app.get_pareto_front_trials = _feasible_front  # it has no public place for this; a test reads the page


def dashboard(url: str, write: bool = False) -> App:
    """The dashboard of a storage URL as a guarded WSGI application."""
    open_storage(url)
    view = FeasibleView(url, skip_compatibility_check=True, skip_table_creation=True)
    app: App = optuna_dashboard.wsgi(view)
    return guarded(app, write)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Access lines are not kept."""


def main() -> None:
    """Serve until the process is ended."""
    host, port = sys.argv[1:]
    app = dashboard(os.environ["CHAMTUNE_STORAGE"], os.environ.get("CHAMTUNE_WRITE") == "yes")
    with make_server(host, int(port), app, server_class=_Server, handler_class=_QuietHandler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
