"""optuna-dashboard with feasibility shown right: `python -m studies.dashboard STORAGE HOST PORT`.

The stock dashboard (0.21) reads constraints in the form of Optuna 4 only, so that it draws every Optuna 5 trial as
feasible, and names the best trial and the Pareto front without regard to feasibility. Here it is handed a storage that
shows each trial's constraints in the form it knows and names the best feasible trial, and its Pareto routine is given
the feasible trials only. Requests for another host name, and writes from another origin, are refused.
"""

from __future__ import annotations

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

from studies.storage import open_storage

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
LIST_FORM = "constraints"


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether no constraint of the trial is broken."""
    return all(value <= 0 for value in trial.constraints.values())


class FeasibleView(RDBStorage):
    """A storage as the dashboard reads it."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials, each with its constraints also in the old list form, in the order of their names."""
        trials = super().get_all_trials(study_id, deepcopy=deepcopy, states=states)
        for trial in trials:
            if trial.constraints and LIST_FORM not in trial._system_attrs:
                trial._system_attrs[LIST_FORM] = [trial.constraints[name] for name in sorted(trial.constraints)]
        return trials

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


def guarded(app: App) -> App:
    """Refuse requests whose Host is not a loopback name (DNS rebinding) and writes from another origin."""

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname
        origin = environ.get("HTTP_ORIGIN")
        foreign = environ["REQUEST_METHOD"] not in ("GET", "HEAD") and origin is not None
        if host not in ("127.0.0.1", "localhost") or (foreign and urlsplit(origin).netloc != environ["HTTP_HOST"]):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"only requests for this machine are answered\n"]
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")
        return app(environ, start_response)

    return checked


def dashboard(url: str) -> App:
    """The dashboard of a storage URL as a guarded WSGI application."""
    open_storage(url)
    front = dashboard_app.get_pareto_front_trials

    def feasible_front(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
        chosen: list[FrozenTrial] = front(trials=[t for t in trials if is_feasible(t)], directions=directions)
        return chosen

    dashboard_app.get_pareto_front_trials = feasible_front
    view = FeasibleView(url, skip_compatibility_check=True, skip_table_creation=True)
    app: App = optuna_dashboard.wsgi(view)
    return guarded(app)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Access lines are not kept."""


def main() -> None:
    """Serve until the process is ended."""
    url, host, port = sys.argv[1:]
    with make_server(host, int(port), dashboard(url), server_class=_Server, handler_class=_QuietHandler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
