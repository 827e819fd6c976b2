"""Who may ask a service: bearer tokens, and the rule that other machines need one."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from mergefront.adapters.remote.http.endpoint import is_loopback_host
from mergefront.optimizer.errors import UserError

ANYBODY = "local"
"""The client where no tokens are declared: everybody on this machine."""
_SHORTEST = 16


class Tokens:
    """The clients' bearer tokens, by the clients' names. Only the tokens' hashes are kept."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._names: dict[bytes, str] = {}
        for name, token in tokens.items():
            twin = self._names.setdefault(sha256(token.encode()).digest(), name)
            if twin != name:
                raise UserError(f"clients.{name}: the same token as {twin}'s; give each client its own")

    @property
    def are_needed(self) -> bool:
        return bool(self._names)

    def client(self, authorization: str | None) -> str | None:
        """The client whose token this header has, None for nobody. Takes as long for every wrong token."""
        if not self._names:
            return ANYBODY
        scheme, _, token = (authorization or "").partition(" ")
        given = sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        found = [name for known, name in self._names.items() if hmac.compare_digest(known, given)]
        return found[0] if found and scheme.lower() == "bearer" else None

    def check_host(self, host: str, remedy: str) -> None:
        """Raises ``UserError`` where other machines could reach ``host`` without a token."""
        if not self._names and not is_loopback_host(host):
            raise UserError(
                f"host {host}: other machines can reach it, so it needs a token; {remedy}, or listen on 127.0.0.1"
            )


def checked_token(token: str, source: str) -> str:
    """A bearer token from ``source``; raises ``UserError`` for one that is too short or has odd characters."""
    token = token.strip()
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{source} holds no usable token; a token is {_SHORTEST} or more printable characters without "
            "spaces (python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one)"
        )
    return token


def token_in_file(path: Path, label: str) -> str:
    """The token that stands alone in a file; raises ``UserError``."""
    try:
        return checked_token(path.read_text(encoding="utf-8"), f"{label} {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{label} {path}: cannot be read: {type(error).__name__}") from None
