"""Watching: optuna-dashboard and MLflow, two processes on loopback, started and stopped together."""

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

from personalization.errors import UnavailableError
from studies.runner import stop_on_signal
from tracking.spool import tracking_uri

START_TIMEOUT_S = 90


class Addresses(NamedTuple):
    """Where the two pages are."""

    dashboard: str
    mlflow: str


def serve(
    home: Path,
    storage: str,
    tracking: str | None,
    ports: tuple[int, int],
    ready: Callable[[Addresses], None],
) -> None:
    """Run both servers until SIGINT or SIGTERM, or until one of them ends. `ready` is called once both answer."""
    host = "127.0.0.1"
    for port in ports:
        _check_free(host, port)
    uri = tracking_uri(home, tracking)
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    commands = {
        "dashboard": [sys.executable, "-m", "studies.dashboard", storage, host, str(ports[0])],
        "mlflow": [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
            *("--artifacts-destination", (home / "mlartifacts").resolve().as_uri()),
            *("--host", host, "--port", str(ports[1]), "--workers", "1"),
            *("--allowed-hosts", f"{host}:{ports[1]},localhost:{ports[1]}"),
        ],
    }
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with stop_on_signal() as stop:
        try:
            for name, command in commands.items():
                with (logs / f"{name}.log").open("ab") as log:
                    processes[name] = subprocess.Popen(
                        command, stdout=log, stderr=log, env=environment, start_new_session=True
                    )
            for (name, process), port in zip(processes.items(), ports, strict=True):
                _wait_for(name, process, host, port, logs, lambda: stop.signal is not None)
            if stop.signal is None:
                ready(Addresses(*(f"http://{host}:{port}" for port in ports)))
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
