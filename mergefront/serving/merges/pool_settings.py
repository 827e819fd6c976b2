"""The pool file of ``mergefront serve``."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mergefront.optimizer.sections import Section

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class QuotaSection(Section):
    """What one client may use: messages, items in them, tokens scored or generated. ``per`` "day" begins
    anew at midnight UTC."""

    requests: int | None = Field(default=None, ge=1)
    items: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    per: Literal["day", "ever"] = "day"


class ClientSection(Section):
    """One client. Its bearer token is in an environment variable or alone in a file, never in the pool file."""

    token_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    token_file: str | None = None
    quota: QuotaSection = Field(default_factory=QuotaSection)

    @model_validator(mode="after")
    def _one_source(self) -> ClientSection:
        if (self.token_env is None) == (self.token_file is None):
            raise ValueError("name the token's source: either token_env or token_file")
        return self


class LimitsSection(Section):
    """Bounds of one message and of what waits. ``text`` is characters of one prompt or continuation."""

    body: int = Field(default=8 * 2**20, ge=1024, le=2**30)
    items: int = Field(default=256, ge=1, le=100_000)
    text: int = Field(default=100_000, ge=1, le=10**8)
    new_tokens: int = Field(default=2048, ge=1, le=10**6)
    waiting: int = Field(default=256, ge=1, le=100_000)
    sessions: int = Field(default=64, ge=1, le=10_000)
    session_days: float = Field(default=30.0, gt=0, le=3650)


class PoolFile(Section):
    """A pool file, as written. Paths are relative to it; ``allow`` names what may differ between the models'
    configurations; ``state`` is the SQLite file of sessions and usage."""

    pool: str = Field(pattern=NAME)
    base_model: str
    models: dict[str, str] = Field(min_length=1)
    allow: list[str] = Field(default_factory=list)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    host: str = "127.0.0.1"
    port: int = Field(default=8280, ge=0, le=65535)
    state: str = "merge_server.db"
    clients: dict[str, ClientSection] = Field(default_factory=dict)
    limits: LimitsSection = Field(default_factory=LimitsSection)

    @field_validator("clients")
    @classmethod
    def _plain_names(cls, clients: dict[str, ClientSection]) -> dict[str, ClientSection]:
        for name in clients:
            if not re.match(NAME, name):
                raise ValueError(f"client {name!r}: a name has letters, digits, dots, dashes and underscores only")
        return clients
