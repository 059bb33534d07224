"""URLs of databases and servers without what must not be kept or shown.

A password reaches a child process by its environment, and is in no file, argument or message. A URL that is kept lacks
it; it is given again at each use, for an HTTP server best by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

from __future__ import annotations

import sqlalchemy

SECRET_KEYS = ("password", "passwd", "sslpassword", "token", "access_token")
"""Keys of a URL's query whose values are secrets."""


def shown(url: str) -> str:
    """The URL as it may be printed: `***` in the place of each secret. What is no URL is given back."""
    parsed = _parsed(url)
    if parsed is None or (parsed.password is None and not _secret_keys(parsed)):
        return url
    hidden = parsed.update_query_dict(dict.fromkeys(_secret_keys(parsed), "***"))
    return hidden.render_as_string(hide_password=True)


def kept(url: str) -> str:
    """The URL as it may be kept: without secrets, and for an HTTP server without the user, too."""
    parsed = _parsed(url)
    if parsed is None:
        return url
    http = parsed.drivername in ("http", "https")
    if parsed.password is None and not _secret_keys(parsed) and not (http and parsed.username):
        return url
    bare = sqlalchemy.URL.create(
        parsed.drivername,
        username=None if http else parsed.username,
        host=parsed.host,
        port=parsed.port,
        database=parsed.database,
        query=parsed.query,
    )
    return bare.difference_update_query(_secret_keys(parsed)).render_as_string(hide_password=False)


def tracking_environment(uri: str) -> dict[str, str]:
    """For a process that speaks to MLflow: the URI, and apart from it a server's user and password."""
    parsed = _parsed(uri)
    if parsed is None or parsed.drivername not in ("http", "https") or not parsed.username:
        return {"MLFLOW_TRACKING_URI": uri}
    return {
        "MLFLOW_TRACKING_URI": kept(uri),
        "MLFLOW_TRACKING_USERNAME": parsed.username,
        "MLFLOW_TRACKING_PASSWORD": str(parsed.password or ""),
    }


def is_server(uri: str) -> bool:
    """Whether an MLflow URI is a server's, which has pages of its own."""
    parsed = _parsed(uri)
    return parsed is not None and parsed.drivername in ("http", "https")


def _parsed(url: str) -> sqlalchemy.URL | None:
    try:
        return sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return None


def _secret_keys(url: sqlalchemy.URL) -> list[str]:
    return [key for key in url.query if key.lower() in SECRET_KEYS]
