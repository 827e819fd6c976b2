"""Responses of API servers in the study's database (``mergefront_responses``).

Does what ``mergefront.adapters.remote.http.cache.ResponseCache`` asks for. A row is written when its answer has been
read, in a transaction of its own, so that a kill at any instant loses only requests under way.
"""

from __future__ import annotations

import hashlib
import zlib

from sqlalchemy import func, select

from mergefront.storage.database import Database, insert_missing
from mergefront.storage.schema import responses, utc_now


class DatabaseResponses:
    """The responses that a database holds, shared by all studies in it. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def find(self, key: str) -> str | None:
        """The body of the response to an exact request, or None."""
        query = select(responses.c.body).where(responses.c.key == key)
        body = self.database.read(lambda connection: connection.execute(query).scalar())
        return None if body is None else zlib.decompress(body).decode()

    def keep(self, key: str, server: str, body: str, spent: tuple[int, int, int]) -> None:
        """Store a response; of two processes that asked at once the first one's stays."""
        row = {
            "key": key,
            "server": _digest(server),
            "body": zlib.compress(body.encode()),
            "requests": spent[0],
            "input_tokens": spent[1],
            "output_tokens": spent[2],
            "created_at": utc_now(),
        }
        self.database.write(lambda connection: insert_missing(connection, responses, row))

    def spent(self, server: str) -> tuple[int, int, int]:
        """Requests, input tokens and output tokens of all stored responses of one server."""
        columns = (responses.c.requests, responses.c.input_tokens, responses.c.output_tokens)
        sums = select(*(func.coalesce(func.sum(column), 0) for column in columns))
        query = sums.where(responses.c.server == _digest(server))
        row = self.database.read(lambda connection: connection.execute(query).one())
        return int(row[0]), int(row[1]), int(row[2])


def _digest(server: str) -> str:
    return hashlib.sha256(server.encode()).hexdigest()
