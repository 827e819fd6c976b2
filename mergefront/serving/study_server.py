"""Ask and tell over HTTP: any harness in any language drives the studies of a database.

Every route but ``/health`` wants the bearer token where there is one, and other machines are served with one
only. The OpenAPI document is at ``/openapi.json``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import Field, model_validator

from mergefront.adapters.remote.http.endpoint import is_loopback_host
from mergefront.optimizer.errors import MergefrontError, StorageError, UserError
from mergefront.optimizer.scores.evaluation import LARGEST
from mergefront.optimizer.search.ask_tell import DEFAULT_LEASE, ConflictError, UnknownTrialError
from mergefront.optimizer.sections import Section
from mergefront.serving.api import add_routes, asking_client, described, metrics_answer, problem, service_of
from mergefront.serving.metrics import Metrics
from mergefront.serving.process import bound_socket, run_application
from mergefront.serving.tokens import Tokens
from mergefront.storage.database import Database
from mergefront.storage.studies import all_studies, find
from mergefront.study.stored_study import Study

LARGEST_BODY = 256 * 1024
_CONCURRENCY = 256
_LONGEST_LEASE = 366 * 24 * 3600.0
_METRICS = {
    "budget": ("gauge", "Evaluations that a study may spend."),
    "finished": ("gauge", "Evaluations that are spent, failures included."),
}
_log = logging.getLogger("mergefront.serve")

Number = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Text = Annotated[str, Field(min_length=1, max_length=200)]


class Ask(Section):
    """``lease``: seconds after which a trial that was not told is handed out again."""

    lease: float = Field(default=DEFAULT_LEASE, gt=0, le=_LONGEST_LEASE)


class AskedTrial(Section):
    """A recipe to score: its parameters, and the whole of it in mergekit's format."""

    trial: int
    anchor: str | None
    params: dict[str, Any]
    seed: int
    mergekit: dict[str, Any]


class Tell(Section):
    """One score per objective, and their standard errors where they are known. An objective whose ``items`` are told
    (scores by the item's id) needs no score: it is their mean."""

    scores: dict[Text, Number] = Field(default={}, max_length=1000)
    standard_errors: dict[Text, Annotated[float, Field(ge=0, le=LARGEST)]] = Field(default={}, max_length=1000)
    items: dict[Text, Annotated[dict[Text, Number], Field(min_length=1)]] = Field(default={}, max_length=1000)

    @model_validator(mode="after")
    def _says_something(self) -> Tell:
        if not self.scores and not self.items:
            raise ValueError("tell scores or items")
        return self


class Fail(Section):
    """Why a recipe could not be scored."""

    reason: str = Field(min_length=1, max_length=10_000)


class ObjectiveShown(Section):
    """An objective and its direction, "maximize" or "minimize"."""

    name: str
    direction: str


class StudyShown(Section):
    """How far a study is; ``evaluations`` is its budget, ``done`` what is spent of it."""

    name: str
    evaluations: int
    done: int
    objectives: list[ObjectiveShown]


class StudyServer:
    """The studies of a database for clients that have ``token`` (None: for everybody on this machine)."""

    def __init__(self, database: Database, token: str | None) -> None:
        self.database = database
        self.tokens = Tokens({} if token is None else {"client": token})
        # Proposals cost a sampler's work; one at a time keeps many clients from starving each other.
        self.asking = threading.Lock()

    def study(self, name: str) -> Study:
        """The study; 404 when there is none. Other studies' names are not told."""
        record = find(self.database, name)
        if record is None:
            raise HTTPException(404, "there is no such study")
        return Study(self.database, record)


Served = Annotated[StudyServer, Depends(service_of)]
Name = Annotated[str, Path(min_length=1, max_length=200)]
Trial = Annotated[int, Path(ge=0, lt=2**31)]
routes = APIRouter(
    dependencies=[Depends(asking_client)],
    responses=described(
        {
            400: "the body cannot be read",
            401: "no valid token",
            403: "a web page, or another machine without a token",
            404: "no such study or trial",
            409: "the trial has other scores already",
            413: "the body is too large",
            415: "the body is not application/json",
            422: "a field is wrong",
            503: "the database is away",
        }
    ),
)


@routes.get(
    "/metrics", response_class=PlainTextResponse, summary="How far the studies are, in Prometheus' text format."
)
def metrics(server: Served) -> PlainTextResponse:
    shown = Metrics("mergefront_study_", _METRICS)
    for study in studies(server):
        shown.set("budget", study.evaluations, study=study.name)
        shown.set("finished", study.done, study=study.name)
    return metrics_answer(shown.text())


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
        asked = server.study(name).ask(body.lease)
    return Response(status_code=204) if asked is None else AskedTrial(**asked.to_json())


@routes.post(
    "/v1/studies/{name}/trials/{trial}/tell",
    status_code=204,
    summary="The scores of a trial. Telling the same again changes nothing.",
)
def tell(name: Name, trial: Trial, body: Tell, server: Served) -> None:
    study = server.study(name)
    study.tell(trial, body.scores, standard_errors=body.standard_errors, items=body.items)


@routes.post(
    "/v1/studies/{name}/trials/{trial}/fail",
    status_code=204,
    summary="The trial could not be scored. Telling so again changes nothing.",
)
def fail(name: Name, trial: Trial, body: Fail, server: Served) -> None:
    server.study(name).tell_failed(trial, body.reason)


def _shown(study: Study) -> StudyShown:
    return StudyShown(
        name=study.name,
        evaluations=study.record.evaluations,
        done=study.ledger.finished_count(),
        objectives=[ObjectiveShown(name=each.name, direction=each.direction) for each in study.objectives],
    )


def make_application(server: StudyServer, *, loopback_only: bool) -> FastAPI:
    app = FastAPI(title="mergefront studies", version="1", docs_url=None, redoc_url=None)
    add_routes(
        app,
        [routes],
        server,
        server.tokens,
        _answer,
        largest_body=LARGEST_BODY,
        concurrency=_CONCURRENCY,
        loopback_only=loopback_only,
    )
    return app


def _answer(error: MergefrontError) -> JSONResponse:
    match error:
        case UnknownTrialError():
            return problem(404, str(error))
        case ConflictError():
            return problem(409, str(error))
        case UserError():
            return problem(422, str(error))
        case StorageError():
            _log.error("%s", error)
            return problem(503, "the database cannot be used now; try again", "storage", **{"Retry-After": "30"})
    _log.error("%s", error)
    return problem(503, "the study cannot go on; see the service's log", "study")


def serve_studies(database: Database, host: str, port: int, token: str | None, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``ready`` is called with the URL.

    Raises ``UserError`` for an address that cannot be had, and for one that other machines reach without a token.
    """
    server = StudyServer(database, token)
    server.tokens.check_host(host, "give one with --token-file")
    with bound_socket(host, port) as bound:
        app = make_application(server, loopback_only=is_loopback_host(host))
        run_application(app, bound, ready, closing=lambda: None)
