"""MLflow's server for `chamtune ui`: `python -P -m tracking.mlflow_page HOST PORT ARTIFACTS`.

The store's URI stands in MLFLOW_BACKEND_STORE_URI. Off are the parts of MLflow 3.17 that tracking needs not and that
whoever reaches the port could use: the assistant (it runs tools on this machine), the gateway (it holds keys and calls
other servers), jobs, and servers of the Model Context Protocol. MLflow has no switches for them, so that a guard
stands in front. MLflow's own check of the Host header stays on; writes from pages of another origin are refused here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

CLOSED = re.compile(
    r"/+(gateway|((ajax-)?api/+[\d.]+/+)(mlflow/+)?"
    r"(assistant|gateway|gateway-proxy|jobs|mcp-servers|prompt-optimization|scorer))(/|$)"
)
"""Paths that are answered with 404, as if MLflow had no such route."""


def guarded(app: App) -> App:
    """MLflow without the closed paths, and without writes from another origin."""

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (status := _refusal(scope)):
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"this part of MLflow is off in chamtune ui\n"})
            return
        await app(scope, receive, send)

    return checked


def _refusal(scope: Message) -> int | None:
    if CLOSED.match(scope["path"]):
        return 404
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    own = b"http://" + headers.get(b"host", b"")
    if scope["method"] not in ("GET", "HEAD", "OPTIONS") and origin not in (None, own):
        return 403
    return None


def main() -> None:
    """Serve until the process is ended."""
    import uvicorn
    from mlflow.server import constants
    from mlflow.server.handlers import initialize_backend_stores

    host, port, artifacts = sys.argv[1:]
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    root = "mlflow-artifacts:/"
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: uri,
        constants.ARTIFACT_ROOT_ENV_VAR: root,
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{host}:{port},localhost:{port}",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    initialize_backend_stores(uri, uri, root)
    from mlflow.server.fastapi_app import app

    uvicorn.run(guarded(app), host=host, port=int(port), lifespan="off", access_log=False)


if __name__ == "__main__":
    main()
