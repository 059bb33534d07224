"""Database URLs, of Optuna and of MLflow, made and taken apart by SQLAlchemy.

A path may hold what means something in a URL (`?`, `%`, `#`, a space), and a URL may name a driver and options; so
nobody joins one by hand, cuts one, or compares its beginning.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

import sqlalchemy

from personalization.errors import UsageError

SECRETS = re.compile("key|pass|pwd|secret|token", re.IGNORECASE)
"""What the keys of a URL's query have in them whose values are secrets."""
FILES = ("sslkey", "ssl_key", "passfile")
"""Keys whose values are names of files."""

PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


def sqlite_url(path: Path, driver: str | None = None) -> str:
    """The URL of a SQLite file."""
    name = "sqlite" if driver is None else f"sqlite+{driver}"
    return sqlalchemy.URL.create(name, database=str(path)).render_as_string(hide_password=False)


def sealed_url(file: Path) -> str:
    """The URL of a SQLite file that may be read and not written, nor anything beside it.

    A log beside it (WAL) holds what is not yet in the file, and is read where it is whole; without one, SQLite is told
    that nobody changes the file, since it would ask for a place for its locks.
    """
    log = file.with_name(f"{file.name}-wal")
    query = {"uri": "true", "mode": "ro"} if log.exists() and log.stat().st_size else {"uri": "true", "immutable": "1"}
    return sqlalchemy.URL.create("sqlite", database=f"file:{quote(str(file))}", query=query).render_as_string()


def is_sqlite(url: str) -> bool:
    """Whether a URL is SQLite's, with whatever driver and options. What is no database URL is not."""
    parsed = _parsed(url)
    return parsed is not None and parsed.get_backend_name() == "sqlite"


def sqlite_file(url: str) -> Path | None:
    """The file behind a SQLite URL, resolved; None for a database in memory and for any other URL."""
    parsed = _parsed(url)
    if parsed is None or parsed.get_backend_name() != "sqlite" or parsed.query.get("mode") == "memory":
        return None
    database = parsed.database or ":memory:"
    if "uri" in parsed.query and database.startswith("file:"):
        database = unquote(split(database).path)
    return None if database in ("", ":memory:") else Path(database).resolve()


def same_database(one: str, other: str) -> bool:
    """Whether two URLs name one database, however they spell it: the same file, or place and options of a server."""
    files = sqlite_file(one), sqlite_file(other)
    if files != (None, None):
        return files[0] == files[1]
    first, second = _parsed(one), _parsed(other)
    return first is not None and second is not None and _server(first) == _server(second)


def shown(url: str) -> str:
    """A URL, or an MLflow server's, for a message: `***` in the place of each secret."""
    parsed = _parsed(url)
    if parsed is not None:
        hidden = parsed.update_query_dict(dict.fromkeys(_secrets(parsed), "***"))
        return hidden.render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
    scheme, mark, _ = url.partition("://")
    return f"{scheme}://***" if mark else url


def split(url: str) -> SplitResult:
    """The parts of a URL; UsageError where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        raise UsageError(f"{shown(url)} is no URL") from None


def without_secrets(said: str, url: str) -> str:
    """What somebody else's library said who was given a URL, without what is hidden where the URL is shown.

    Of a URL that cannot be taken apart nobody knows what is secret, so that nothing of what was said is told.
    """
    parsed = _parsed(url)
    if parsed is None:
        return "it cannot be taken apart as a URL" if "://" in url else said
    raw = re.match(r"[^:/]*://[^:/]*:(.*)@", url)
    secrets = {str(parsed.password or ""), *(str(parsed.query[key]) for key in _secrets(parsed))}
    secrets |= set() if raw is None else {raw[1], *raw[1].split("@")}
    said = said.replace(url, shown(url))
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        said = said.replace(secret, "***")
    return said


def kept(url: str) -> str:
    """A URL as it may be stored: without secrets, and without the user of an HTTP server.

    The secret is given again at each use: in the environment (PGPASSWORD, or MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD), or in the spec. What cannot be taken apart and may hold one is stored as it is shown.
    """
    parsed = _parsed(url)
    if parsed is None:
        return shown(url)
    http = parsed.drivername in ("http", "https")
    if parsed.password is None and not _secrets(parsed) and not (http and parsed.username):
        return url
    bare = sqlalchemy.URL.create(
        parsed.drivername,
        username=None if http else parsed.username,
        host=parsed.host,
        port=parsed.port,
        database=parsed.database,
        query=parsed.query,
    )
    return bare.difference_update_query(_secrets(parsed)).render_as_string(hide_password=False)


def _secrets(url: sqlalchemy.URL) -> list[str]:
    return [key for key in url.query if SECRETS.search(key) and key.lower() not in FILES]


def _server(url: sqlalchemy.URL) -> tuple[object, ...]:
    backend = url.get_backend_name()
    return backend, (url.host or "localhost").lower(), url.port or PORTS.get(backend), url.database, url.query


def _parsed(url: str) -> sqlalchemy.URL | None:
    """None where it is no database URL, as MLflow's may be; ValueError is SQLAlchemy's word for an odd port.

    A password may hold an `@`, from which on SQLAlchemy takes it for the host.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return None
    more, mark, host = (parsed.host or "").rpartition("@")
    return parsed.set(password=f"{parsed.password}@{unquote(more)}", host=host) if mark else parsed
