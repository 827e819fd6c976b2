"""Addresses and keys: what is refused before anything is sent."""

from __future__ import annotations

import base64
import html
import json
import pickle
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest

from mergefront.adapters.remote.http.endpoint import ApiKey, checked_url
from mergefront.optimizer.errors import UserError


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "ftp://host/",
        "http://",
        "https://user:secret-word@host/v1",
        "https://host/v1?key=secret-word",
        "https://host/v1#secret-word",
        "http://host:99999",
    ],
)
def test_an_address_with_a_secret_or_without_a_host_is_refused_without_repeating_the_secret(url: str):
    with pytest.raises(UserError) as raised:
        checked_url(url)
    assert "secret-word" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://[x]/", "http://a:99999", "http://a\x00b/", "http://a/\x7f", "http://" + "a" * 70_000,
            "http://\u2177\u2100/", "http://" + "ü" * 300]
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str):
    with pytest.raises(UserError, match="no valid host or port"):
        checked_url(url)


def test_a_key_does_not_cross_the_network_unencrypted():
    with pytest.raises(UserError, match="unencrypted"):
        checked_url("http://models.example.org/v1", has_key=True)
    assert checked_url("http://models.example.org/v1/", has_key=True, allow_plain_http=True).endswith("/v1")
    assert checked_url("http://127.0.0.1:80", has_key=True) and checked_url("http://[::1]:80", has_key=True)


@pytest.mark.parametrize("value", ["", "  ", "abc", "two words", "line\nbreak-in-key", "clé-secrète"])
def test_an_unusable_key_is_named_by_its_variable_only(value: str):
    with pytest.raises(UserError, match="SOME_KEY") as raised:
        ApiKey.from_environment("SOME_KEY", {"SOME_KEY": value})
    assert not value.strip() or value not in str(raised.value)


def test_a_key_cannot_be_serialised_and_is_scrubbed_in_every_form():
    key = ApiKey.from_environment("SOME_KEY", {"SOME_KEY": 'ab/cd"ef-123456'})
    with pytest.raises(TypeError):
        pickle.dumps(key)
    assert key.scrub('you sent ab/cd"ef-123456') == "you sent ***"
    assert "123456" not in key.scrub('{"error": "ab/cd\\"ef-123456"}')


SECRET = "sk-Ab+cd/Ef=12_34&\\5678"
PLAIN = "sk-Ab+cd/Ef=12_34.5678-9xyz"


def in_json(text: str) -> str:
    return "".join(f"\\u{ord(sign):04X}" for sign in text)


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": lambda key: json.dumps(key)[1:-1],
    "JSON with escaped slashes": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "JSON, plus escaped": lambda key: json.dumps(key)[1:-1].replace("+", "\\u002B"),
    "JSON, all escaped": in_json,
    "JSON in JSON": lambda key: json.dumps(json.dumps(json.dumps(key).replace("+", "\\u002b"))),
    "percent": lambda key: quote(key, safe=""),
    "percent, all": lambda key: "".join(f"%{ord(sign):02x}" for sign in key),
    "percent twice": lambda key: quote(quote(key, safe=""), safe=""),
    "HTML": lambda key: html.escape(key),
    "HTML, decimal": lambda key: "".join(f"&#{ord(sign)};" for sign in key),
    "HTML, hexadecimal": lambda key: "".join(f"&#x{ord(sign):X};" for sign in key),
    "percent in JSON": lambda key: in_json(quote(key, safe="")),
}
SHOWN_FORMS: dict[str, Callable[[str], str]] = {
    **FORMS,
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 of the header": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "base64 of a line": lambda key: base64.urlsafe_b64encode(f"Key: {key}".encode()).decode(),
    "hexadecimal": lambda key: key.encode().hex(),
    "lower case": str.lower,
    "two texts": lambda key: json.dumps([key[:9], key[9:]]),
    "letters": lambda key: json.dumps(list(key)),
    "lines": lambda key: json.dumps("\n".join([key[:7], key[7:13], key[13:]])),
    "halves with words between": lambda key: f"it begins with {key[:14]} and ends with {key[14:]}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", [SECRET, PLAIN])
def test_an_answer_that_is_kept_has_no_escaped_key(form: str, secret: str) -> None:
    key = ApiKey(secret)
    text = f'{{"text": "caf\\u00e9 100% &amp; {FORMS[form](secret)} \\n end"}}'
    assert re.fullmatch(r'\{"text": "caf\\u00e9 100% &amp; ["\\]*\*\*\*["\\]* \\n end"\}', key.scrub_answer(text))


@pytest.mark.parametrize("form", SHOWN_FORMS)
def test_a_reason_that_is_shown_has_no_trace_of_the_key(form: str) -> None:
    said = ApiKey(PLAIN).scrub(f"refused: {SHOWN_FORMS[form](PLAIN)} (see the manual)")
    assert said.startswith("refused: ") and said.endswith(" (see the manual)") and "***" in said
    left = re.sub("[^a-z0-9]", "", said.lower().removesuffix("(see the manual)").replace("it begins with", ""))
    assert len(left) <= len("refused" + "andendswith" + "".join(PLAIN[-7:])), said


def test_an_answer_without_the_key_stays_as_it_is() -> None:
    text = json.dumps({"text": 'say "EMPTY"? E, M, P, T, Y: caf\u00e9 50%25 &lt;b&gt; \\\\ empty'})
    assert ApiKey("EMPTY-key").scrub_answer(text) == text and ApiKey("Empt").scrub_answer(text) == text


@pytest.mark.parametrize("unit", ["\\", "%", "%25", "&amp;", "\\u002B", "s", "sk-", "&", "*"])
def test_long_bodies_are_scrubbed_in_time(unit: str) -> None:
    """A hundred thousand signs take parts of a second; a quadratic scrubber would not end."""
    assert "sk-Ab+" not in ApiKey(PLAIN).scrub(unit * (100_000 // len(unit)) + PLAIN)
