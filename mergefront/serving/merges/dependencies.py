"""What the routes ask for: the service, and the client whose token a request has."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from mergefront.serving import api
from mergefront.serving.merges.quotas import Client
from mergefront.serving.merges.service import MergeService


def service_of(request: Request) -> MergeService:
    service: MergeService = request.app.state.service
    return service


Service = Annotated[MergeService, Depends(service_of)]


def client_of(service: Service, name: api.Asker) -> Client:
    return service.client(name)


Asker = Annotated[Client, Depends(client_of)]
