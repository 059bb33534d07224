"""The HTTP side: routes, what they refuse, and what OpenAPI says of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from personalization.errors import DataError, UnavailableError
from serving.limits import Limits
from serving.schemas import Answer, Answers, Asks, Body, Feedback, Noted, Refused
from serving.service import Given, NoSuchRequest, Service

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refused, "description": "no JSON, or a foreign Host"},
    401: {"model": Refused, "description": "no token"},
    408: {"model": Refused, "description": "a body that is too slow"},
    413: {"model": Refused, "description": "a body that is too large"},
    422: {"model": Refused, "description": "JSON of another form, or a question that cannot be answered"},
    503: {"model": Refused, "description": "too many wait, or the log cannot be written"},
}
LOST: dict[int | str, dict[str, Any]] = {404: {"model": Refused, "description": "no such request in the log"}}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}


def app_of(service: Service, hosts: Sequence[str], token: str | None = None, **limits: Any) -> FastAPI:
    """The application.

    `hosts`: what a Host header may name; `token`: what clients must bring; `limits`: of `Limits`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = service.begin()
        yield
        running.cancel()
        await service.end()

    app = FastAPI(title="chamtune", docs_url=None, redoc_url=None, lifespan=lifespan, responses=REFUSALS)
    _answers(app, service)
    _status(app, service)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(DataError)(_told(422))
    app.exception_handler(UnavailableError)(_told(503))
    app.exception_handler(NoSuchRequest)(_told(404))
    Instrumentator(registry=service.gauges.registry, excluded_handlers=["/metrics"]).instrument(
        app, latency_highr_buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
    )
    app.add_middleware(Limits, token=token, **limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return app


def _answers(app: FastAPI, service: Service) -> None:
    """Add the routes of predictions and feedback."""

    @app.post("/predict", response_model=Answer | Answers)
    async def predict(body: Body) -> Response:
        """Answer one question, or several: each as if it were alone."""
        asks = body.questions if isinstance(body, Asks) else [body]
        given = await service.answer(asks)
        found = [_answer(ask.id, one) for ask, one in zip(asks, given, strict=True)]
        whole = Answers(answers=found) if isinstance(body, Asks) else found[0]
        return Response(whole.model_dump_json(), media_type="application/json")

    @app.post("/feedback", responses=LOST)
    async def feedback(body: Feedback) -> Noted:
        """Note the right label of an answered question; it lies on the disk when this answers."""
        return Noted(request=body.request, remembered=await service.note(body))


def _answer(key: str | None, given: Given) -> Answer:
    found = given.prediction
    return Answer.model_construct(
        id=key,
        request=given.request,
        label=found.label,
        probability=found.probability,
        log_probs=found.log_probs,
        prior=found.prior_mode,
        generation=given.generation,
        arm=given.arm,
        uncounted=given.uncounted,
    )


def _status(app: FastAPI, service: Service) -> None:
    """Add the routes of health, version and metrics."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """The model is loaded and has answered. `failed`: why a newer generation does not serve, if one does not."""
        return {"status": "ready", "generation": service.place.now.generation, "failed": service.place.failed}

    @app.get("/version")
    async def version() -> dict[str, Any]:
        """What serves: generation, content, model, provenance; and the config beside it."""
        other = None if service.other is None else service.other.now.described()
        return {**service.place.now.described(), "split": service.terms.split, "other": other}

    @app.get("/metrics", response_class=Response, responses=TEXT)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.gauges.registry), media_type=CONTENT_TYPE_LATEST)


def _told(status: int) -> Any:
    async def handler(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status)

    return handler


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with a body, in one line, without what was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return JSONResponse({"error": f"the body is no JSON: {first['ctx']['error']}"}, 400)
    place = ".".join(str(part) for part in first["loc"] if part not in ("one", "many"))
    more = len(error.errors()) - 1
    return JSONResponse({"error": f"{place}: {first['msg']}" + (f", and {more} more" if more else "")}, 422)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
