"""What both services have in common: the token check, problems as JSON, health, and the guard before all routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from mergefront.optimizer.errors import MergefrontError
from mergefront.optimizer.sections import Section
from mergefront.serving.guard import Guard
from mergefront.serving.tokens import Tokens

_SHOWN_PROBLEMS = 5


class Problem(Section):
    """Why a request was refused. ``kind`` groups causes: "refused" for what no route has seen, "not finite" for a
    merge whose logits are not finite."""

    detail: str
    kind: str


def problem(status: int, detail: str, kind: str = "request", **headers: str) -> JSONResponse:
    return JSONResponse({"detail": detail, "kind": kind}, status, headers)


def described(statuses: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Error statuses with their meanings, as the OpenAPI document has them."""
    return {status: {"model": Problem, "description": meaning} for status, meaning in statuses.items()}


async def asking_client(request: Request) -> str:
    """The name of the client whose token the request has, as the guard found it."""
    client: str = request.state.client
    return client


Asker = Annotated[str, Depends(asking_client)]
_open_routes = APIRouter()


def service_of(request: Request) -> Any:
    """What the application answers for, see ``add_routes``."""
    return request.app.state.service


@_open_routes.get("/health", summary="Whether the service answers.")
async def health() -> dict[str, str]:
    return {"status": "ok"}


def metrics_answer(text: str) -> PlainTextResponse:
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def add_routes(
    app: FastAPI,
    routers: Iterable[APIRouter],
    service: object,
    tokens: Tokens,
    answer: Callable[[MergefrontError], JSONResponse],
    *,
    largest_body: int,
    concurrency: int,
    loopback_only: bool,
) -> None:
    """Make ``app`` answer for ``service`` (``app.state.service``): ``routers`` for clients with a token, ``/health``
    for everybody. ``answer`` says what an error of ours becomes; see ``Guard`` for the rest."""
    app.state.service = service
    for router in (_open_routes, *routers):
        app.include_router(router)
    app.add_middleware(
        Guard, tokens=tokens, largest_body=largest_body, concurrency=concurrency, loopback_only=loopback_only
    )

    def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, MergefrontError)
        return answer(error)

    app.add_exception_handler(MergefrontError, ours)
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return problem(error.status_code, str(error.detail), **(error.headers or {}))


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Without the input, which may be long and the client knows.
    listed = [f"{'.'.join(str(part) for part in one['loc'])[:200]}: {one['msg'][:200]}" for one in error.errors()]
    more = f" (and {len(listed) - _SHOWN_PROBLEMS} more)" if len(listed) > _SHOWN_PROBLEMS else ""
    return problem(422, "; ".join(listed[:_SHOWN_PROBLEMS]) + more)
