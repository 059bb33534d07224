import json

import optuna
import pytest

from personalization.databases import kept, shown
from personalization.errors import UnavailableError, UsageError
from studies import sync as sync_module
from studies.shown.ui import store_of, tracked_studies
from studies.storage import open_storage, storage_url
from studies.study import RECORD, open_study
from studies.sync import sync
from tracking.spool import Spool, tracking_uri


def make_study(home, name: str, tracking: str | None) -> Spool:
    """A study in a home, with a spool of one record."""
    home.mkdir(exist_ok=True)
    study = optuna.create_study(storage=open_storage(storage_url(home, None)), study_name=name)
    spec = {"name": name, "data": {"path": "demo"}, "model": {"path": "demo"}}
    terms = {"tracking": tracking, "trials": 3, "promotion": {}}
    study.set_user_attr(RECORD, {"id": "0123456789ab", "spec": spec, "terms": terms, "order": ["accuracy"]})
    spool = Spool(home, name, "0123456789ab")
    spool.append({"kind": "study"})
    return spool


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The URIs that senders were started with. None is started."""
    uris: list[str] = []

    class Recorded:
        succeeded = True

        def __init__(self, spool, uri):
            uris.append(uri)

        def finish(self, timeout_s):
            return 0

    monkeypatch.setattr(sync_module, "Sender", Recorded)
    return uris


def test_sync_goes_to_the_place_of_the_study_unless_another_is_given(tmp_path, asked):
    home = tmp_path / "home"
    make_study(home, "here", None)
    make_study(home, "there", "http://mlflow.example:5000")
    make_study(home, "off", "none")
    assert sync("there", home) == "http://mlflow.example:5000"
    assert sync("here", home) == tracking_uri(home, None)
    assert sync("there", home, tracking="http://u:s3cret@other") == "http://u:***@other"
    assert asked == ["http://mlflow.example:5000", tracking_uri(home, None), "http://u:s3cret@other"]
    with pytest.raises(UsageError, match="no study 'nothing'"):
        sync("nothing", home)
    with pytest.raises(UsageError, match="no study 'nothing'"):
        sync("nothing", home, tracking="http://other")
    with pytest.raises(UsageError, match=r"^http://u:\*\*\*@\[bad is no URL$"):
        sync("there", home, tracking="http://u:s3cret@[bad")
    with pytest.raises(UsageError, match="off is not tracked"):
        sync("off", home)


def test_sync_fails_and_says_why_where_records_were_refused(tmp_path, asked, monkeypatch):
    spool = make_study(tmp_path / "home", "study", None)
    end = spool.records()[-1][1]
    spool.note_sent({"head": spool.head(), "offset": end, "refused": {str(end): "Invalid value"}})
    monkeypatch.setattr(sync_module.Sender, "finish", lambda sender, timeout_s: spool.waiting())
    with pytest.raises(UnavailableError, match="1 records wait for .*: Invalid value; see .*tracking.log"):
        sync("study", tmp_path / "home")


def test_sync_fails_where_the_sender_did_though_nothing_waits(tmp_path, asked, monkeypatch):
    make_study(tmp_path / "home", "study", None)
    monkeypatch.setattr(sync_module.Sender, "succeeded", False)
    with pytest.raises(UnavailableError):
        sync("study", tmp_path / "home")


def test_sync_fails_where_a_run_sends_to_another_place_meanwhile(tmp_path, asked, monkeypatch):
    spool = make_study(tmp_path / "home", "study", None)
    spool.note_sent({"head": spool.head(), "offset": spool.records()[-1][1], "refused": {}, "place": "http://a"})
    monkeypatch.setattr(sync_module.Sender, "succeeded", False)
    said = "^1 records wait for http://b; they were sent to http://a: if a run of study goes on, sync when it has ended"
    with pytest.raises(UnavailableError, match=said):
        sync("study", tmp_path / "home", tracking="http://b")


def test_the_page_shows_the_store_that_the_studies_agree_on(tmp_path):
    home = tmp_path / "home"
    make_study(home, "one", "http://a")
    make_study(home, "off", "none")
    storage = storage_url(home, None)
    assert store_of(home, tracked_studies(home, storage), None) == "http://a"
    make_study(home, "two", "http://b")
    assert store_of(home, tracked_studies(home, storage), None) == tracking_uri(home, None)
    assert store_of(home, tracked_studies(home, storage), "http://c") == "http://c"


def test_a_study_keeps_no_password(tmp_path, spec_of):
    opened = open_study(spec_of(tracking="http://user:s3cret@127.0.0.1:9/x"), tmp_path / "home")
    assert opened.study.user_attrs[RECORD]["terms"]["tracking"] == "http://127.0.0.1:9/x"
    for file in (tmp_path / "home").rglob("*"):
        assert not file.is_file() or b"s3cret" not in file.read_bytes(), file
    assert "s3cret" not in json.dumps(opened.study.user_attrs)


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("http://user:s3cret@host:5000/a", "http://host:5000/a"),
        (
            "postgresql+psycopg://user:s3cret@host/db?sslmode=require",
            "postgresql+psycopg://user@host/db?sslmode=require",
        ),
        ("postgresql://host/db?password=s3cret", "postgresql://host/db"),
        ("postgresql://user:s3cret@host:port/db", "postgresql://***"),
        ("postgresql://user:s3cret@s3cret@host/db", "postgresql://user@host/db"),
        ("postgresql://user:a/s3cret@s3cret@host:5432/db", "postgresql://user@host:5432/db"),
        ("http://host/a?api_key=s3cret&x=1", "http://host/a?x=1"),
        ("http://[user:s3cret", "http://***"),
        ("sqlite:////a b/mlflow.db", "sqlite:////a b/mlflow.db"),
        ("mlruns", "mlruns"),
    ],
)
def test_what_is_stored_and_shown_of_a_url_has_no_secret(url, stored):
    assert kept(url) == stored
    assert "s3cret" not in shown(url)
