"""What a process that speaks to MLflow is told of where it is."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from personalization.databases import kept


def is_server(uri: str) -> bool:
    """Whether an MLflow URI is a server's, which has pages of its own."""
    return urlsplit(uri).scheme in ("http", "https")


def tracking_environment(uri: str) -> dict[str, str]:
    """Environment variables of MLflow: the URI, and apart from it a server's user and password."""
    if not is_server(uri) or urlsplit(uri).username is None:
        return {"MLFLOW_TRACKING_URI": uri}
    parts = urlsplit(uri)
    return {
        "MLFLOW_TRACKING_URI": kept(uri),
        "MLFLOW_TRACKING_USERNAME": unquote(parts.username or ""),
        "MLFLOW_TRACKING_PASSWORD": unquote(parts.password or ""),
    }
