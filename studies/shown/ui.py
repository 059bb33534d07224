"""Watching: our own pages, optuna-dashboard and MLflow, three processes on loopback, started and stopped together.

Where a study is tracked by a server, its own pages are named and none are served here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from personalization.databases import kept, shown
from personalization.errors import UnavailableError
from studies.runner import stop_on_signal
from studies.storage import open_storage
from studies.study import RECORD
from tracking.spool import OFF, PRIVATE, VIEW_NAME, Spool, tracking_uri
from tracking.urls import is_server

START_TIMEOUT_S = 90
HOST = "127.0.0.1"
VIEW = f"viewStateShareKey={VIEW_NAME}&workflowType=machine_learning"
"""The view that the sender has stored with the experiment, in MLflow's pages for training and not those for chats."""


class Tracked(NamedTuple):
    """A study and where MLflow has it."""

    spool: Spool
    uri: str


class Pages(NamedTuple):
    """Where the pages are: the servers, MLflow's store as it may be printed, and each study's runs by name."""

    start: str
    dashboard: str
    mlflow: str
    store: str
    studies: dict[str, str]


def tracked(home: Path, name: str, record: Mapping[str, Any] | None) -> Tracked | None:
    """A study by name and record; None where it is not tracked, or not chamtune's."""
    if record is None or record["terms"]["tracking"] == OFF:
        return None
    return Tracked(Spool(home, name, record["id"]), tracking_uri(home, record["terms"]["tracking"]))


def tracked_studies(home: Path, storage: str) -> list[Tracked]:
    """The studies of a storage that are tracked, in the order of their creation."""
    summaries = optuna.get_all_study_summaries(open_storage(storage), include_best_trial=False)
    found = (tracked(home, summary.study_name, summary.user_attrs.get(RECORD)) for summary in summaries)
    return [study for study in found if study is not None]


def store_of(home: Path, studies: list[Tracked], tracking: str | None) -> str:
    """The given MLflow URI, or that of the studies where they agree, or the home folder's."""
    uris = {study.uri for study in studies}
    return tracking or (uris.pop() if len(uris) == 1 else tracking_uri(home, None))


def runs_page(base: str, study: Tracked, uri: str) -> str | None:
    """MLflow's page of a study's runs, best first; None where the study is not in this store."""
    notes = study.spool.sent()
    if notes.get("place") != kept(uri) or "experiment" not in notes:
        return None
    return f"{base}/#/experiments/{notes['experiment']}/runs?{VIEW}"


def serve(
    home: Path,
    storage: str,
    tracking: str | None,
    ports: tuple[int, int, int],
    pages: str,
    ready: Callable[[Pages], None],
    write: bool = False,
) -> None:
    """Run the servers until SIGINT or SIGTERM, or until one of them ends. `ready` is called once all answer.

    `pages`: the module that serves our pages; `ports`: of our pages, the dashboard, MLflow. With `write` the dashboard
    may change studies. The URLs of the stores go to the servers by their environment.
    """
    studies = tracked_studies(home, storage)
    uri = store_of(home, studies, tracking)
    base = kept(uri).rstrip("/") if is_server(uri) else f"http://{HOST}:{ports[2]}"
    servers: dict[str, tuple[str, ...]] = {
        "pages": (pages, HOST, str(ports[0])),
        "dashboard": ("studies.shown.dashboard", HOST, str(ports[1])),
    }
    if not is_server(uri):
        artifacts = (home / "mlartifacts").resolve().as_uri()
        servers["mlflow"] = ("tracking.mlflow_page", HOST, str(ports[2]), artifacts)
    for _, host, port, *_ in servers.values():
        _check_free(host, int(port))
    (home / "logs").mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "CHAMTUNE_STORAGE": storage,
        "CHAMTUNE_HOME": str(home.resolve()),
        "CHAMTUNE_DASHBOARD": f"http://{HOST}:{ports[1]}",
        "CHAMTUNE_MLFLOW": base,
        "CHAMTUNE_WRITE": "yes" if write else "no",
        "MLFLOW_BACKEND_STORE_URI": uri,
    }

    def up() -> None:
        found = {study.spool.study: runs_page(base, study, uri) for study in studies}
        known = {name: page for name, page in found.items() if page is not None}
        own, dashboard = (f"http://{HOST}:{port}" for port in ports[:2])
        ready(Pages(own, dashboard, base, shown(uri), known))

    _run(servers, home / "logs", environment, up)


def _run(
    servers: Mapping[str, tuple[str, ...]], logs: Path, environment: dict[str, str], ready: Callable[[], None]
) -> None:
    """Run servers, name -> (module, host, port, ...), until a signal, or until one ends; `ready`: once all answer."""
    running: list[Server] = []
    with stop_on_signal() as stop:
        try:
            for name, command in servers.items():
                running.append(Server(name, int(command[2]), logs / f"{name}.log", command, environment))
            for server in running:
                server.wait_until_up(lambda: stop.signal is not None)
            if stop.signal is None:
                ready()
            while stop.signal is None:
                for server in running:
                    server.check()
                time.sleep(0.2)
        finally:
            for server in running:
                server.end()


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise UnavailableError(f"port {port} on {host} is taken; give another one") from None


class Server:
    """One server's process, with a log that only its owner reads. It imports nothing from the working directory."""

    def __init__(self, name: str, port: int, log: Path, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self.name, self.port, self.log = name, port, log
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
        with os.fdopen(handle, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", *command],
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def check(self) -> None:
        """UnavailableError where the process has ended."""
        if self.process.poll() is not None:
            raise UnavailableError(f"the {self.name} server ended with {self.process.returncode}; see {self.log}")

    def wait_until_up(self, stopped: Callable[[], bool]) -> None:
        """Return once the port answers, or nobody wants it any more."""
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and not stopped():
            self.check()
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            time.sleep(0.1)
        if not stopped():
            raise UnavailableError(f"the {self.name} server did not answer within {START_TIMEOUT_S} s; see {self.log}")

    def end(self) -> None:
        """SIGTERM to the process and its children; SIGKILL after ten seconds."""
        for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
