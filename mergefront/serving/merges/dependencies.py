"""What the routes ask for: the service, the client whose token a request has, and bounds that the pool file sets."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from mergefront.optimizer.errors import UserError
from mergefront.serving import api
from mergefront.serving.merges.pool_settings import LimitsSection
from mergefront.serving.merges.quotas import Client
from mergefront.serving.merges.service import MergeService


def service_of(request: Request) -> MergeService:
    service: MergeService = request.app.state.service
    return service


Service = Annotated[MergeService, Depends(service_of)]


def client_of(service: Service, name: api.Asker) -> Client:
    return service.client(name)


Asker = Annotated[Client, Depends(client_of)]


def check_sizes(limits: LimitsSection, items: int, texts: list[str], new_tokens: int = 0) -> None:
    """Raises ``UserError`` for more items, longer texts or more new tokens than the pool file allows."""
    if items > limits.items:
        raise UserError(f"{items} items in one message; this service takes {limits.items}: send several messages")
    longest = max(map(len, texts), default=0)
    if longest > limits.text:
        raise UserError(f"a text of {longest} characters; this service takes {limits.text}")
    if new_tokens > limits.new_tokens:
        raise UserError(f"{new_tokens} new tokens; this service generates {limits.new_tokens} at most")
