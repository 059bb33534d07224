"""Watching: optuna-dashboard and MLflow, two processes on loopback, started and stopped together.

Where a study is tracked by a server, its own pages are named and none are served here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import optuna

from personalization.errors import UnavailableError
from studies.runner import stop_on_signal
from studies.storage import open_storage
from studies.study import RECORD
from tracking.spool import OFF, PRIVATE, Spool, tracking_uri
from tracking.urls import is_server, kept, shown

START_TIMEOUT_S = 90
HOST = "127.0.0.1"


class Tracked(NamedTuple):
    """A study and where MLflow has it."""

    spool: Spool
    uri: str
    first: str


class Pages(NamedTuple):
    """Where the pages are: the two servers, MLflow's store as it may be printed, and each study's runs by name."""

    dashboard: str
    mlflow: str
    store: str
    studies: dict[str, str]


def tracked_studies(home: Path, storage: str) -> list[Tracked]:
    """The studies of a storage that are tracked, in the order of their creation."""
    found = []
    for summary in optuna.get_all_study_summaries(open_storage(storage), include_best_trial=False):
        record = summary.user_attrs.get(RECORD)
        if record is not None and record["terms"]["tracking"] != OFF:
            spool = Spool(home, summary.study_name, record["id"])
            found.append(Tracked(spool, tracking_uri(home, record["terms"]["tracking"]), record["order"][0]))
    return found


def store_of(home: Path, studies: list[Tracked], tracking: str | None) -> str:
    """The given MLflow URI, or that of the studies where they agree, or the home folder's."""
    uris = {study.uri for study in studies}
    return tracking or (uris.pop() if len(uris) == 1 else tracking_uri(home, None))


def runs_page(base: str, study: Tracked, uri: str) -> str | None:
    """MLflow's page of a study's runs, best first; None where the study is not in this store."""
    notes = study.spool.sent()
    if notes.get("place") != kept(uri):
        return None
    query = urlencode({"compareRunsMode": "TABLE", "orderByKey": f"metrics.`{study.first}`", "orderByAsc": "false"})
    return f"{base}/#/experiments/{notes['experiment']}/runs?{query}"


def serve(
    home: Path,
    storage: str,
    tracking: str | None,
    ports: tuple[int, int],
    ready: Callable[[Pages], None],
    write: bool = False,
) -> None:
    """Run the servers until SIGINT or SIGTERM, or until one of them ends. `ready` is called once all answer.

    With `write` the dashboard may change studies. A storage's or MLflow's URL goes to its server by the environment.
    """
    studies = tracked_studies(home, storage)
    uri = store_of(home, studies, tracking)
    environment = os.environ | {
        "CHAMTUNE_STORAGE": storage,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "PYTHONSAFEPATH": "1",
    }
    environment.pop("CHAMTUNE_WRITE", None)
    if write:
        environment["CHAMTUNE_WRITE"] = "1"
    modules = {"dashboard": ("studies.dashboard", HOST, str(ports[0]))}
    if not is_server(uri):
        artifacts = str((home / "mlartifacts").resolve())
        modules["mlflow"] = ("tracking.mlflow_page", HOST, str(ports[1]), artifacts)
    for _, port in zip(modules, ports, strict=False):
        _check_free(HOST, port)
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with stop_on_signal() as stop:
        try:
            for name, command in modules.items():
                processes[name] = _start([sys.executable, "-P", "-m", *command], logs / f"{name}.log", environment)
            for (name, process), port in zip(processes.items(), ports, strict=False):
                _wait_for(name, process, HOST, port, logs, lambda: stop.signal is not None)
            base = kept(uri).rstrip("/") if is_server(uri) else f"http://{HOST}:{ports[1]}"
            pages = {study.spool.study: runs_page(base, study, uri) for study in studies}
            if stop.signal is None:
                known = {name: page for name, page in pages.items() if page is not None}
                ready(Pages(f"http://{HOST}:{ports[0]}", base, shown(uri), known))
            while stop.signal is None:
                for name, process in processes.items():
                    if process.poll() is not None:
                        raise UnavailableError(
                            f"the {name} server ended with {process.returncode}; see {logs / name}.log"
                        )
                time.sleep(0.2)
        finally:
            for process in processes.values():
                _end(process)


def _start(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
    with os.fdopen(handle, "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise UnavailableError(f"port {port} on {host} is taken; give another one") from None


def _wait_for(
    name: str, process: subprocess.Popen[bytes], host: str, port: int, logs: Path, stopped: Callable[[], bool]
) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and not stopped():
        if process.poll() is not None:
            raise UnavailableError(f"the {name} server did not start; see {logs / name}.log")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, port)) == 0:
                return
        time.sleep(0.1)
    if not stopped():
        raise UnavailableError(f"the {name} server did not answer within {START_TIMEOUT_S} s; see {logs / name}.log")


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process and its children; SIGKILL after ten seconds."""
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
