import os
from pathlib import Path

import pytest
import sqlalchemy

from personalization.databases import is_sqlite, same_database, shown, sqlite_file, sqlite_url, without_secrets

ODD = ("plain", "a?b", "a%20b", "a%b", "a#b", "a b", "ä{x}", "a&b=c;d", "a@b:c")


@pytest.mark.parametrize("name", ODD)
def test_sqlalchemy_opens_the_file_that_the_url_was_made_of(tmp_path, name):
    path = tmp_path / name / "x.db"
    path.parent.mkdir()
    with sqlalchemy.create_engine(sqlite_url(path)).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert sqlite_file(sqlite_url(path)) == path


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////a/x.db?timeout=100", "/a/x.db"),
        ("sqlite+pysqlite:////a/x.db", "/a/x.db"),
        ("sqlite:////a/../b/x.db", "/b/x.db"),
        ("sqlite:///file:/a%2520b/x.db?mode=ro&uri=true", "/a b/x.db"),
        ("sqlite:///x.db", f"{os.getcwd()}/x.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:shared?mode=memory&uri=true", None),
        ("postgresql://h/sqlite", None),
        ("nonsense", None),
        ("http://h:port", None),
    ],
)
def test_the_file_behind_a_url(url, file):
    assert sqlite_file(url) == (None if file is None else Path(file))
    assert is_sqlite(url) == url.startswith("sqlite")


def test_one_file_is_one_database_however_it_is_spelt(tmp_path):
    path = tmp_path / "a?b.db"
    (tmp_path / "link.db").symlink_to(path)
    for spelling in (
        sqlite_url(path, "pysqlite"),
        sqlite_url(path) + "?timeout=5",
        sqlite_url(tmp_path / "link.db"),
        sqlite_url(tmp_path / "x" / ".." / "a?b.db"),
    ):
        assert same_database(sqlite_url(path), spelling)
    assert not same_database(sqlite_url(path), sqlite_url(tmp_path / "a"))
    assert not same_database(sqlite_url(path), "none")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("postgresql+psycopg://u@H:5432/d", True),
        ("postgresql+psycopg2://other:pw@h/d", True),
        ("postgresql://h/e", False),
        ("postgresql://h:5433/d", False),
        ("postgresql://h/d?options=-csearch_path%3Dmlflow", False),
        ("mysql://h/d", False),
        ("http://h/d", False),
    ],
)
def test_one_database_of_a_server_by_whatever_user_and_driver(other, same):
    assert same_database("postgresql://u:secret@h/d", other) is same


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/d", "postgresql://u:secret@h:port/d"])
def test_a_message_shows_no_password(url):
    assert "secret" not in shown(url)
    assert shown(url).startswith("postgresql://")


def test_files_of_a_url_are_no_secrets():
    url = "postgresql://h/d?passfile=%2Fa&sslkey=%2Fb&sslpassword=c"
    assert shown(url) == "postgresql://h/d?passfile=%2Fa&sslkey=%2Fb&sslpassword=***"


@pytest.mark.parametrize(
    ("url", "said", "left"),
    [
        (
            "databricks://bob:s3cret@h",
            "databricks://bob:s3cret@h is bad: put bob s3cret@h",
            "databricks://bob:***@h is bad: put bob ***@h",
        ),
        ("postgresql://bob:s3@cret@h/d", "no host 'cret@h'", "no host '***@h'"),
        ("postgresql://bob:s3%40cret@h/d", "bob, s3@cret, s3%40cret", "bob, ***, ***"),
        ("http://h?api_key=s3cret", "key s3cret", "key ***"),
        ("http://[bob:s3cret", "no number: 's3cret'", "it cannot be taken apart as a URL"),
        ("nonsense", "no such file", "no such file"),
        ("sqlite:////a.db", "no such file", "no such file"),
    ],
)
def test_what_a_library_says_of_a_url_is_told_without_its_secrets(url, said, left):
    assert without_secrets(said, url) == left
