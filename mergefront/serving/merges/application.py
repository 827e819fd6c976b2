"""The routes of the merge service."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from mergefront.adapters.language_model import Chat, Generation, LogLikelihood, ScoringRequest
from mergefront.optimizer.errors import EvaluationError, MergefrontError, UserError, did_you_mean
from mergefront.serving.api import add_routes, described, metrics_answer, problem, service_of
from mergefront.serving.merges import wire
from mergefront.serving.merges.dependencies import Asker, Service
from mergefront.serving.merges.openai_routes import routes as openai_routes
from mergefront.serving.merges.queueing import GoneError, QueueClosedError, QueueFullError
from mergefront.serving.merges.quotas import QuotaSpentError
from mergefront.serving.merges.service import MergeService, Question, UnknownSessionError
from mergefront.serving.process import run_application

_log = logging.getLogger("mergefront.serve")
routes = APIRouter(
    responses=described(
        {
            400: "the recipe or request makes no sense; asking again does not help",
            401: "no valid token",
            402: "the quota is used up for good",
            404: "no such session",
            413: "the body is too large",
            422: "a field is wrong, or the merge cannot be scored (kind says why)",
            429: "too much at once, or the day's quota is used up; see Retry-After",
            503: "the service is ending; see Retry-After",
        }
    )
)


@routes.get("/metrics", response_class=PlainTextResponse, summary="Counters in Prometheus' text format.")
async def metrics(service: Service, _: Asker) -> PlainTextResponse:
    return metrics_answer(service.metrics_text())


@routes.post("/v1/sessions", summary="Begin a session.")
async def open_session(body: wire.OpenSession, service: Service, client: Asker) -> wire.SessionOpened:
    if body.pool != service.file.pool:
        hint = did_you_mean(body.pool, [service.file.pool])
        raise HTTPException(404, f"there is no pool {body.pool!r} {hint}")
    session = service.open_session(client)
    return wire.SessionOpened(session_id=session.id, models=list(service.pool.models), pool_digest=service.pool.digest)


@routes.get("/v1/sessions/{session_id}", summary="A session that was begun earlier.")
async def find_session(session_id: str, service: Service, client: Asker) -> wire.SessionFound:
    session = service.session(session_id, client)
    return wire.SessionFound(
        session_id=session.id,
        models=list(service.pool.models),
        pool_digest=service.pool.digest,
        recipe=session.recipe,
    )


@routes.delete("/v1/sessions/{session_id}", status_code=204, summary="End a session.")
async def end_session(session_id: str, service: Service, client: Asker) -> Response:
    service.state.remove_session(service.session(session_id, client).id)
    return Response(status_code=204)


@routes.put("/v1/sessions/{session_id}/merge", summary="Choose the merge that the completions routes answer with.")
async def set_merge(session_id: str, body: wire.SetMerge, service: Service, client: Asker) -> wire.SessionFound:
    session = service.session(session_id, client)
    service.pool.check(body.recipe.to_recipe())
    service.state.set_recipe(session.id, body.recipe.model_dump())
    return await find_session(session_id, service, client)


@routes.post("/v1/sessions/{session_id}/loglikelihood", summary="Score continuations with a merge.")
async def loglikelihood(
    session_id: str, body: wire.LogLikelihoodBody, request: Request, service: Service, client: Asker
) -> wire.LogLikelihoodAnswer:
    session = service.session(session_id, client)
    asked = [ScoringRequest(_prompt(one.context), one.continuation) for one in body.requests]
    texts = [text for one in body.requests for text in (*_texts(one.context), one.continuation)]
    question: Question[list[LogLikelihood]] = Question(
        "loglikelihood",
        body.recipe.to_recipe(),
        texts,
        [0] * len(asked),
        lambda model: model.loglikelihood(asked),
        _tokens,
    )
    return wire.LogLikelihoodAnswer(answers=await service.ask(client, session, question, request.is_disconnected))


@routes.post("/v1/sessions/{session_id}/generate", summary="Continue prompts with a merge.")
async def generate(
    session_id: str, body: wire.GenerateBody, request: Request, service: Service, client: Asker
) -> wire.GenerateAnswer:
    session = service.session(session_id, client)
    asked = [one.to_request() for one in body.requests]
    question: Question[list[Generation]] = Question(
        "generate",
        body.recipe.to_recipe(),
        [text for one in body.requests for text in _texts(one.prompt)],
        [one.most_tokens for one in asked],
        lambda model: model.generate(asked),
        _tokens,
    )
    return wire.GenerateAnswer(answers=await service.ask(client, session, question, request.is_disconnected))


def _prompt(given: str | wire.ChatBody) -> str | Chat:
    return given if isinstance(given, str) else given.to_chat()


def _texts(given: str | wire.ChatBody) -> list[str]:
    """What a prompt holds; the length of each is bounded."""
    return [given] if isinstance(given, str) else given.texts


def _tokens(answers: Sequence[LogLikelihood] | Sequence[Generation]) -> int:
    return sum(one.tokens or 0 for one in answers)


def make_application(service: MergeService) -> FastAPI:
    """The ASGI application of a service; it ends the service when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.end()

    app = FastAPI(
        title="mergefront merge service",
        version="1",
        description="Recipes in, answers of the merged model out.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.middleware("http")(_count)
    add_routes(
        app,
        [routes, openai_routes],
        service,
        service.tokens,
        _answer,
        largest_body=service.limits.body,
        concurrency=4 * service.limits.waiting + 64,
        loopback_only=not service.tokens.are_needed,
    )
    return app


def run_service(service: MergeService, bound: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Then what runs is answered, and what waits is told to ask again."""
    run_application(make_application(service), bound, ready, closing=service.queue.close)


async def _count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    try:
        response = await call_next(request)
    except Exception:
        _log.exception("an unexpected fault")
        response = problem(500, "the service failed; its log says how", "fault")
    route = request.scope.get("route")
    path = getattr(route, "path", "other")
    service_of(request).metrics.add("requests_total", route=path, status=str(response.status_code))
    return response


def _answer(error: MergefrontError) -> JSONResponse:
    match error:
        case EvaluationError():
            return problem(422, str(error), error.kind)
        case UnknownSessionError():
            return problem(404, str(error), "session")
        case QuotaSpentError(wait=None):
            return problem(402, str(error), "quota")
        case QuotaSpentError(wait=seconds):
            return problem(429, str(error), "quota", **{"Retry-After": str(seconds)})
        case QueueFullError():
            return problem(429, str(error), "busy", **{"Retry-After": "1"})
        case QueueClosedError():
            return problem(503, str(error), "ending", **{"Retry-After": "1"})
        case GoneError():
            return problem(499, str(error), "gone")
    return problem(400 if isinstance(error, UserError) else 500, str(error))
