"""Where a server is, and the key that it wants.

A key is read from the environment when the client is made. It is sent, and never stored, logged or
shown: ``ApiKey`` has no readable representation, and ``scrub`` removes it from whatever a server echoes.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx

from mergefront.adapters.remote.http.scrubbing import without_escaped, without_traces
from mergefront.optimizer.errors import UserError

_SHORTEST_KEY = 4
"""A shorter key would be scrubbed out of ordinary words."""


class ApiKey:
    """A secret: shown as ``***`` wherever it is printed, equal to nothing, not to be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def from_environment(cls, variable: str, environment: Mapping[str, str] = os.environ) -> ApiKey:
        """The key in an environment variable; raises ``UserError`` that names the variable, never its value."""
        value = environment.get(variable, "").strip()
        if not value:
            raise UserError(f"the environment variable {variable} is not set; it must hold the server's API key")
        if len(value) < _SHORTEST_KEY or not value.isascii() or not value.isprintable() or " " in value:
            raise UserError(
                f"the environment variable {variable} holds no usable API key; a key is {_SHORTEST_KEY} or more "
                "printable characters without spaces"
            )
        return cls(value)

    def header(self) -> str:
        return f"Bearer {self._value}"

    def scrub(self, text: str) -> str:
        """``text``, which is only shown, without the key and its parts, whatever form they have."""
        return without_traces(text, self._value)

    def scrub_answer(self, text: str) -> str:
        """A model's answer without the key, plain or escaped, and else as it is."""
        return without_escaped(text, self._value)

    def __repr__(self) -> str:
        return "ApiKey(***)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("an API key is not to be serialised")


class KeyFilter(logging.Filter):
    """Takes a key out of log records: at level DEBUG the HTTP library logs the headers of answers, in which
    a server may echo what it was sent. Entered for as long as a client with a key is open."""

    LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")

    def __init__(self, key: ApiKey) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._key.scrub(record.getMessage()), ()
        return True

    def install(self) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).addFilter(self)

    def remove(self) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeFilter(self)


def checked_url(url: str, *, has_key: bool = False, allow_plain_http: bool = False) -> str:
    """A server's base URL without its trailing slash.

    Raises ``UserError`` when it is no http(s) URL, when it holds a user, a password or a query, and when a
    key would be sent unencrypted to another machine (``allow_plain_http`` permits that).
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):  # what they say may repeat a password
        raise UserError("url: the server's address has no valid host or port; see http://127.0.0.1:8080") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"url is {_without_user(url)!r}; write the server's address as http://127.0.0.1:8080")
    if parts.username is not None or parts.password is not None:
        raise UserError("url holds a user name or password; put the key into the environment and name it: api_key_env")
    if parts.query or parts.fragment:
        raise UserError("url has a query or a fragment; write only the server's address, such as https://host/v1")
    if has_key and parts.scheme == "http" and not allow_plain_http and not is_loopback(url):
        raise UserError(
            f"url {url}: the API key would cross the network unencrypted; use https, or set allow_plain_http: true"
        )
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether the server is on this machine."""
    return is_loopback_host(urlsplit(url).hostname or "")


def is_loopback_host(host: str) -> bool:
    """Whether only this machine reaches the name or address ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_user(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
