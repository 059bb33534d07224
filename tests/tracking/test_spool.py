"""The file between a study and MLflow."""

import os
import time

import pytest

from personalization.databases import sqlite_file
from personalization.errors import DataError, UnavailableError
from tests.sent import trial
from tracking.runs import runs_of
from tracking.spool import Spool, tracking_uri
from tracking.urls import tracking_environment

mlflow = pytest.importorskip("mlflow")

from tracking.registry import download  # noqa: E402


def test_a_write_that_takes_only_a_part_is_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr("os.write", lambda handle, data: write(handle, bytes(data)[:5]))
    spool = Spool(tmp_path, "parts", "id")
    spool.append(trial(0))
    spool.append(trial(1))
    monkeypatch.undo()
    assert spool.trials() == {0, 1}


def test_default_uri_is_a_file_of_its_own(tmp_path):
    assert tracking_uri(tmp_path, None).endswith("/mlflow.db")
    assert tracking_uri(tmp_path, "http://x") == "http://x"


def test_mlflow_keeps_its_default_file_in_a_home_of_any_name(store):
    file = sqlite_file(store)
    assert (file.parent.name, file.name, file.stat().st_size > 0) == ("a?b %20ü", "mlflow.db", True)
    assert list(file.parent.parent.iterdir()) == [file.parent]


def test_an_mlflow_that_is_down_is_given_up_soon_wherever_it_is_asked(tmp_path, monkeypatch):
    for name in ("TRACKING_URI", "HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_TIMEOUT", "DISABLE_TELEMETRY"):
        monkeypatch.setenv(f"MLFLOW_{name}", "")
        monkeypatch.delenv(f"MLFLOW_{name}")
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="^MLflow at http://127.0.0.1:9: .*refused"):
        runs_of("http://127.0.0.1:9", "x", [])
    with pytest.raises(DataError, match="not to be had from http://127.0.0.1:9: .*refused"):
        download("models:/X@champion", "http://127.0.0.1:9", tmp_path)
    assert time.monotonic() - began < 20
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    assert tracking_environment("http://x")["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"


def test_notes_of_another_form_are_none(tmp_path):
    spool = Spool(tmp_path, "notes", "id")
    spool.append({"kind": "study"})
    for held in (b"[]", b"{ torn", b"\xff"):
        spool.sent_path.write_bytes(held)
        assert spool.sent() == {}


def test_torn_line_waits_for_its_end_and_is_passed_over(tmp_path):
    spool = Spool(tmp_path, "torn", "id")
    spool.append({"kind": "trial", "number": 0})
    with spool.path.open("ab") as file:
        file.write(b'{"kind": "tri')
    assert spool.trials() == {0}
    spool.append({"kind": "trial", "number": 2})
    assert spool.trials() == {0, 2}
    assert spool.records()[-1][1] == spool.path.stat().st_size
