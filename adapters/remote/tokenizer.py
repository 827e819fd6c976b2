"""A server's own tokenizer in the place of a local one.

``Tokenization`` (adapters/tokenization.py) splits context from continuation in tokens, as the LM evaluation
harness does; here it gets its tokens from the server, so that scores agree with local weights and no model
library is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from mergefront.adapters.remote.http.client import HttpClient, Reply, all_of
from mergefront.adapters.remote.http.json_answers import fields

Encode = Callable[[str, bool], Coroutine[Any, Any, list[int]]]
"""Tokens of a text; the switch asks for the special tokens that the model wants around a text."""


class ServerTokenizer:
    """What ``Tokenization`` needs of a tokenizer, and ``TemplateReader`` where the server shows its chat template.

    Texts are encoded together, over the network.
    """

    def __init__(
        self, client: HttpClient, encode: Encode, *, bos_token: str | None, bos_token_id: int | None,
        eos_token_id: int | None, eos_token: str | None = None, chat_template: str | None = None,
    ) -> None:  # fmt: skip
        self._client = client
        self._encode = encode
        self.bos_token = bos_token
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.chat_template = chat_template
        named = {"bos_token": bos_token, "eos_token": eos_token}
        self.special_tokens_map = {name: text for name, text in named.items() if text is not None}

    def __call__(self, texts: str | Sequence[str], add_special_tokens: bool = True) -> Mapping[str, Any]:
        several = [texts] if isinstance(texts, str) else texts
        encoded = self._client.run(all_of(self._encode(text, add_special_tokens) for text in several))
        return {"input_ids": encoded[0] if isinstance(texts, str) else encoded}


def read_tokens(answer: Any) -> Reply[list[int]]:
    """The tokens in an answer to ``/tokenize``."""
    return Reply(fields(answer, "tokens", kind=int))
