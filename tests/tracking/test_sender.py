"""The process that sends."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.sent import begun, names, trial
from tracking.spool import Sender

mlflow = pytest.importorskip("mlflow")


@pytest.mark.slow
def test_the_sender_runs_nothing_of_the_working_directory(tmp_path, store, monkeypatch):
    here = tmp_path / "here"
    (here / "tracking").mkdir(parents=True)
    for module in (here / "mlflow.py", here / "tenacity.py", here / "tracking" / "__init__.py"):
        module.write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n")
    monkeypatch.chdir(here)
    spool = begun(tmp_path / "home", "elsewhere")
    assert Sender(spool, store).finish(60) == 0
    assert list(here.rglob("*.ran")) == []
    assert names(store, "elsewhere") == ["elsewhere"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_outage_of_the_server_loses_nothing_and_sends_nothing_twice(tmp_path, store, free_port):
    spool = begun(tmp_path, "outage")
    sender = Sender(spool, f"http://user:s3cret@127.0.0.1:{free_port}")
    assert b"s3cret" not in Path(f"/proc/{sender._process.pid}/cmdline").read_bytes()
    for number in range(4):
        spool.append(trial(number))
    time.sleep(1.5)
    assert spool.waiting() == 5
    server = start_server(store, tmp_path, free_port)
    try:
        deadline = time.monotonic() + 60
        while spool.waiting() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert spool.waiting() == 0
        kill(server)
        spool.append(trial(4))
        time.sleep(1)
        assert spool.waiting() == 1
        server = start_server(store, tmp_path, free_port)
        assert sender.finish(60) == 0
        assert names(store, "outage") == ["outage", *(f"trial-{n:04d}" for n in range(5))]
        for file in filter(Path.is_file, tmp_path.rglob("*")):
            assert b"s3cret" not in file.read_bytes(), file
        assert spool.sent_path.stat().st_mode & 0o777 == spool.path.stat().st_mode & 0o777 == 0o600
    finally:
        kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    """The launcher and the server that it started."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def start_server(store: str, home: Path, port: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port), "--artifacts-destination", str(home / "artifacts")),
            ],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return server
        except OSError:
            time.sleep(0.2)
    raise AssertionError((home / "server.log").read_text()[-2000:])
