"""Ask and tell over HTTP: any harness in any language drives the studies of a database.

Every route but ``/health`` wants the bearer token where there is one, and other machines are served with one
only. The OpenAPI document is at ``/openapi.json``.
"""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from mergefront.optimizer.errors import MergefrontError, StorageError, UserError
from mergefront.running.ask_tell import DEFAULT_LEASE, UnknownTrialError, ask_study, fail_study, tell_study
from mergefront.serving.guard import Guard
from mergefront.storage.database import Database
from mergefront.storage.studies import all_studies, find
from mergefront.study.stored_study import Study

LARGEST_BODY = 256 * 1024
SHORTEST_TOKEN = 16
_LONGEST_LEASE = 366 * 24 * 3600.0
_SHOWN_PROBLEMS = 5
_METRIC = "mergefront_study_"
_log = logging.getLogger("mergefront.serve")

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e300, le=1e300)]
Text = Annotated[str, Field(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Ask(_Body):
    """``lease``: seconds after which a trial that was not told is handed out again."""

    lease: float = Field(default=DEFAULT_LEASE, gt=0, le=_LONGEST_LEASE)


class AskedTrial(_Body):
    """A recipe to score: its parameters, and the whole of it in mergekit's format."""

    trial: int
    anchor: str | None
    params: dict[str, Any]
    seed: int
    mergekit: dict[str, Any]


class Tell(_Body):
    """One score per objective, and their standard errors where they are known."""

    scores: dict[Text, Number] = Field(min_length=1, max_length=1000)
    standard_errors: dict[Text, Annotated[float, Field(ge=0, le=1e300)]] = Field(default={}, max_length=1000)


class Fail(_Body):
    """Why a recipe could not be scored."""

    reason: str = Field(min_length=1, max_length=10_000)


class ObjectiveShown(_Body):
    """An objective and its direction, "maximize" or "minimize"."""

    name: str
    direction: str


class StudyShown(_Body):
    """How far a study is; ``evaluations`` is its budget, ``done`` what is spent of it."""

    name: str
    evaluations: int
    done: int
    objectives: list[ObjectiveShown]


class Problem(_Body):
    """What is wrong, in a sentence; ``kind`` "refused" for what no route has seen."""

    detail: str
    kind: str = ""


class StudyServer:
    """The studies of a database for clients that have ``token`` (None: for everybody on this machine)."""

    def __init__(self, database: Database, token: str | None) -> None:
        self.database = database
        self._token_hash = None if token is None else sha256(token.encode()).digest()
        # Proposals cost a sampler's work; one at a time keeps many clients from starving each other.
        self.asking = threading.Lock()

    def admits(self, authorization: str | None) -> bool:
        """Whether this header has the token. Takes as long for every wrong one."""
        if self._token_hash is None:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        found = sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(found, self._token_hash) and scheme.lower() == "bearer"

    def study(self, name: str) -> Study:
        """The study; 404 when there is none. Other studies' names are not told."""
        record = find(self.database, name)
        if record is None:
            raise HTTPException(404, "there is no such study")
        return Study(self.database, record)


def _server(request: Request) -> StudyServer:
    server: StudyServer = request.app.state.server
    if not server.admits(request.headers.get("authorization")):
        raise HTTPException(401, "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})
    return server


Served = Annotated[StudyServer, Depends(_server)]
Name = Annotated[str, Path(min_length=1, max_length=200)]
Trial = Annotated[int, Path(ge=0, lt=2**31)]
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "the body cannot be read",
        401: "no valid token",
        403: "a web page, or another machine without a token",
        404: "no such study or trial",
        409: "the trial was told something else already",
        413: "the body is too large",
        415: "the body is not application/json",
        422: "a field is wrong",
        503: "the database is away",
    }.items()
}
open_routes = APIRouter()
routes = APIRouter(responses=_PROBLEMS)


@open_routes.get("/health", summary="Whether the service answers.")
def health() -> dict[str, str]:
    return {"status": "ok"}


@routes.get(
    "/metrics",
    summary="How far the studies are, in Prometheus' text format.",
    response_model=None,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(server: Served) -> PlainTextResponse:
    lines = []
    shown = [_shown(Study(server.database, record)) for record in all_studies(server.database)]
    for name, meaning, values in (
        ("budget", "Evaluations that a study may spend.", [study.evaluations for study in shown]),
        ("finished", "Evaluations that are spent, failures included.", [study.done for study in shown]),
    ):
        lines += [f"# HELP {_METRIC}{name} {meaning}", f"# TYPE {_METRIC}{name} gauge"]
        lines += [
            f'{_METRIC}{name}{{study="{_label(study.name)}"}} {value}'
            for study, value in zip(shown, values, strict=True)
        ]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


@routes.get("/v1/studies", summary="The studies and how far they are.")
def studies(server: Served) -> list[StudyShown]:
    return [_shown(Study(server.database, record)) for record in all_studies(server.database)]


@routes.get("/v1/studies/{name}", summary="One study and how far it is.")
def study(name: Name, server: Served) -> StudyShown:
    return _shown(server.study(name))


@routes.get("/v1/studies/{name}/front", summary="The front, as 'mergefront front NAME --json' prints it.")
def front(name: Name, server: Served) -> dict[str, Any]:
    return server.study(name).to_json()


@routes.post(
    "/v1/studies/{name}/ask",
    summary="The next recipe to score; 204 when the budget is spent or handed out.",
    response_model=AskedTrial,
    responses={204: {"description": "nothing to do"}},
)
def ask(name: Name, body: Ask, server: Served) -> Any:
    with server.asking:
        asked = ask_study(server.study(name), body.lease)
    if asked is None:
        return Response(status_code=204)
    recipe = asked.recipe
    return AskedTrial(
        trial=asked.trial,
        anchor=asked.anchor,
        params=dict(recipe.params),
        seed=recipe.seed,
        mergekit=recipe.to_mergekit(),
    )


@routes.post(
    "/v1/studies/{name}/trials/{trial}/tell",
    status_code=204,
    summary="The scores of a trial. Telling the same again changes nothing.",
)
def tell(name: Name, trial: Trial, body: Tell, server: Served) -> None:
    tell_study(server.study(name), trial, body.scores, body.standard_errors)


@routes.post(
    "/v1/studies/{name}/trials/{trial}/fail",
    status_code=204,
    summary="The trial could not be scored. Telling so again changes nothing.",
)
def fail(name: Name, trial: Trial, body: Fail, server: Served) -> None:
    fail_study(server.study(name), trial, body.reason)


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _shown(study: Study) -> StudyShown:
    return StudyShown(
        name=study.name,
        evaluations=study.record.evaluations,
        done=study.ledger.finished_count(),
        objectives=[ObjectiveShown(name=each.name, direction=each.direction) for each in study.objectives],
    )


def make_application(server: StudyServer, *, loopback_only: bool) -> FastAPI:
    """The ASGI application of a study server."""
    application = FastAPI(title="mergefront studies", version="1", docs_url=None, redoc_url=None)
    application.state.server = server
    application.include_router(open_routes)
    application.include_router(routes)
    application.add_middleware(Guard, largest_body=LARGEST_BODY, loopback_only=loopback_only)
    application.add_exception_handler(RequestValidationError, _wrong_request)
    application.add_exception_handler(MergefrontError, _problem)
    return application


async def _wrong_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        f"{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}" for entry in error.errors()[:_SHOWN_PROBLEMS]
    ]
    return JSONResponse({"detail": "; ".join(problems)}, 422)


async def _problem(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, UnknownTrialError):
        return JSONResponse({"detail": str(error)}, 404)
    if isinstance(error, UserError):
        status = 409 if "already" in str(error) else 422
        return JSONResponse({"detail": str(error)}, status)
    _log.error("%s %s: %s", request.method, request.url.path, error)
    away = isinstance(error, StorageError)
    detail = "the database cannot be used now; try again" if away else "the study cannot go on; see the service's log"
    return JSONResponse({"detail": detail}, 503, {"Retry-After": "30"} if away else {})


def checked_token(token: str, source: str) -> str:
    """A bearer token from ``source``; raises ``UserError`` for one that is too short or has odd characters."""
    token = token.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{source} holds no usable token; a token is {SHORTEST_TOKEN} or more printable characters without "
            "spaces (python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one)"
        )
    return token


def serve_studies(database: Database, host: str, port: int, token: str | None, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``ready`` is called with the URL.

    Raises ``UserError`` for an address that cannot be had, and for one that other machines reach without a token.
    """
    import ipaddress

    import uvicorn

    from mergefront.serving.process import bound_socket

    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if token is None and not loopback:
        raise UserError(
            f"host {host}: other machines can reach it, so it needs a token; give one with --token-file, "
            "or listen on 127.0.0.1"
        )
    with bound_socket(host, port) as bound:
        application = make_application(StudyServer(database, token), loopback_only=loopback)
        config = uvicorn.Config(
            application, log_config=None, access_log=False, server_header=False, limit_concurrency=256, ws="none"
        )
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{bound.getsockname()[1]}")
        uvicorn.Server(config).run([bound])
