"""MLflow's server for `chamtune ui`: `python -P -m tracking.mlflow_page HOST PORT ARTIFACTS`.

The store's URI stands in MLFLOW_BACKEND_STORE_URI. Off are the parts of MLflow 3.17 that tracking needs not and that
whoever reaches the port could use: the assistant (it runs tools on this machine), the gateway (it holds keys and calls
other servers), jobs, and servers of the Model Context Protocol. MLflow has no switches for them, so that a guard
stands in front. MLflow's own check of the Host header stays on; writes from pages of another origin are refused here.

MLflow's page would open an assistant on a browser's first visit; it is told that this has happened, and the buttons
that lead to the assistant are hidden.
"""

from __future__ import annotations

import os
import re
import sys
from urllib.parse import unquote

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLOSED = re.compile(
    r"/+(gateway|((ajax-)?api/+[\d.]+/+)(mlflow/+)?"
    r"(assistant|gateway|gateway-proxy|jobs|mcp-servers|prompt-optimization|scorer))(/|$)"
)
"""Paths that are answered with 404, as if MLflow had no such route."""
ASKED: tuple[tuple[re.Pattern[str], bytes], ...] = (
    (re.compile(r"/ajax-api/[\d.]+/mlflow/assistant/(config|providers)\?"), b"{}"),
    (re.compile(r"/ajax-api/[\d.]+/mlflow/gateway-proxy\?gateway_path=api/2\.0/endpoints/$"), b'{"endpoints": []}'),
)
"""What the page asks of closed parts when it opens, and the answer: that there is nothing. The page shows a refusal
in red."""
START = b"""<script>localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")</script>
<style>[data-assistant-ui] { display: none !important }</style>"""


def guarded(app: ASGIApp) -> ASGIApp:
    """MLflow without the closed paths, without writes from another origin, and with no assistant on its page."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
        elif (nothing := _nothing(scope)) is not None:
            await Response(nothing, media_type="application/json")(scope, receive, send)
        elif (status := _refusal(scope)) is not None:
            await PlainTextResponse("this is off in the MLflow of chamtune ui\n", status)(scope, receive, send)
        elif scope["path"] == "/":
            held: list[Message] = []

            async def hold(message: Message) -> None:
                held.append(message)

            await app(scope, receive, hold)
            body = b"".join(message.get("body", b"") for message in held[1:]).replace(b"<head>", b"<head>" + START, 1)
            headers = [(name, value) for name, value in held[0]["headers"] if name != b"content-length"]
            await send({**held[0], "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await send({"type": "http.response.body", "body": body})
        else:
            await app(scope, receive, send)

    return checked


def _nothing(scope: Scope) -> bytes | None:
    """The answer to what the page asks of closed parts; None to anything else."""
    asked = f"{scope['path']}?{unquote(scope['query_string'].decode('latin-1'))}"
    known = ASKED if scope["method"] == "GET" else ()
    return next((answer for question, answer in known if question.match(asked)), None)


def _refusal(scope: Scope) -> int | None:
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
