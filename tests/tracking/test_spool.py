"""The file between a study and MLflow."""

import os

import pytest

from tests.sent import trial
from tracking.spool import Spool, tracking_uri

mlflow = pytest.importorskip("mlflow")


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


def test_torn_line_waits_for_its_end_and_is_passed_over(tmp_path):
    spool = Spool(tmp_path, "torn", "id")
    spool.append({"kind": "trial", "number": 0})
    with spool.path.open("ab") as file:
        file.write(b'{"kind": "tri')
    assert spool.trials() == {0}
    spool.append({"kind": "trial", "number": 2})
    assert spool.trials() == {0, 2}
    assert spool.records()[-1][1] == spool.path.stat().st_size
