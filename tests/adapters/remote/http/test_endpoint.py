"""Addresses and keys: what is refused before anything is sent."""

from __future__ import annotations

import pickle

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
