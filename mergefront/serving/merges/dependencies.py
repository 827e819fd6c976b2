"""What the routes ask for: the service, and the client whose token a request has."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from mergefront.serving import api
from mergefront.serving.merges.quotas import Client
from mergefront.serving.merges.service import MergeService

Service = Annotated[MergeService, Depends(api.service_of)]


def client_of(service: Service, name: api.Asker) -> Client:
    return service.client(name)


Asker = Annotated[Client, Depends(client_of)]
