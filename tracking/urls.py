"""What a process that speaks to MLflow is told of where it is."""

from __future__ import annotations

import os
from urllib.parse import unquote

from personalization.databases import kept, split

MANNERS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""How MLflow is asked, where the environment says nothing else. By itself it tries one that is down for minutes."""


def is_server(uri: str) -> bool:
    """Whether an MLflow URI is a server's, which has pages of its own."""
    return split(uri).scheme in ("http", "https")


def tracking_environment(uri: str) -> dict[str, str]:
    """Environment variables of MLflow: the URI, apart from it a server's user and password, and how it is asked."""
    manners = {name: os.environ.get(name, value) for name, value in MANNERS.items()}
    parts = split(uri)
    if not is_server(uri) or parts.username is None:
        return {"MLFLOW_TRACKING_URI": uri, **manners}
    return {
        **manners,
        "MLFLOW_TRACKING_URI": kept(uri),
        "MLFLOW_TRACKING_USERNAME": unquote(parts.username or ""),
        "MLFLOW_TRACKING_PASSWORD": unquote(parts.password or ""),
    }
