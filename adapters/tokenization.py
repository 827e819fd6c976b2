"""Texts to tokens and back, with a cache.

Context and continuation are encoded as the LM evaluation harness does (lm-eval 0.4.13), so that
scores agree with it token by token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from mergefront.adapters.chat_templates import ChatReader
from mergefront.adapters.language_model import Chat, GenerationRequest, Tokens
from mergefront.optimizer.errors import UserError

MOST_REMEMBERED = 50_000_000
"""Characters of texts whose tokens are cached; beyond it the cache is emptied (chosen by hand)."""


class Tokenization:
    """A tokenizer with a cache: every merge is asked the same requests, so each text is tokenised once.

    ``add_bos`` forces a BOS token on or off; None leaves it to the tokenizer. A text that begins
    with the BOS token's own text never gets a second one. ``chats`` reads conversations.
    """

    def __init__(self, tokenizer: Any, add_bos: bool | None = None, chats: ChatReader | None = None) -> None:
        self._tokenizer = tokenizer
        self._add_bos = add_bos
        self._chats = chats
        self.begin: int | None = tokenizer.bos_token_id
        """The begin token."""
        self.begin_differs_from_end = self.begin != tokenizer.eos_token_id
        self._prefix: int | None = self.begin if self.begin is not None else tokenizer.eos_token_id
        self._bos_text: str | None = tokenizer.bos_token
        # Some tokenizers put an end token after every text, which must not stand between context and continuation.
        ending = list(self._tokens(["a"])[0][-1:])
        self._ending: int | None = ending[0] if ending == [tokenizer.eos_token_id] else None
        self._texts: dict[str, Tokens] = {}
        self._plain: dict[str, Tokens] = {}
        self._pairs: dict[tuple[str, str], tuple[Tokens, Tokens]] = {}
        self._turns: dict[tuple[Chat, str | None], tuple[Tokens, Tokens]] = {}
        self._written: dict[Chat, str] = {}
        self._may_end: dict[tuple[int, tuple[str, ...]], bool] = {}
        self._special_stops: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._remembered = 0

    def texts(self, texts: Sequence[str | Chat]) -> list[Tokens]:
        """Tokens of prompts; an empty one is the prefix token alone."""
        self._make_room()
        texts = [self._as_asked(text) for text in texts]
        self._read([text for text in texts if isinstance(text, str)])
        self._read_turns([(chat, None) for chat in texts if isinstance(chat, Chat)])
        return [
            self._turns[text, None][0] if isinstance(text, Chat) else self._texts[text] or (self._prefix_token(),)
            for text in texts
        ]

    def pairs(self, pairs: Sequence[tuple[str | Chat, str]]) -> list[tuple[Tokens, Tokens]]:
        """Context and continuation of each pair in tokens; a context has at least one token."""
        self._make_room()
        pairs = [(self._as_asked(context), continuation) for context, continuation in pairs]
        self._read_turns([(chat, answer) for chat, answer in pairs if isinstance(chat, Chat)])
        self._read_pairs([(text, answer) for text, answer in pairs if isinstance(text, str)])
        return [
            self._turns[context, continuation] if isinstance(context, Chat) else self._pairs[context, continuation]
            for context, continuation in pairs
        ]

    def _as_asked(self, prompt: str | Chat) -> str | Chat:
        """A prompt, and of a conversation that is read as a text this text, where it is known."""
        if isinstance(prompt, str) or not prompt.as_text:
            return prompt
        if prompt not in self._written:
            self._written[prompt] = self.chats.rendered(prompt, None)[0]
            self._remembered += len(self._written[prompt])
        return self._written[prompt] or prompt

    @property
    def chats(self) -> ChatReader:
        """How the model reads conversations; raises ``UserError`` where it reads none."""
        if self._chats is None:
            raise UserError("this model reads no conversations; leave chat out")
        return self._chats

    def opens_thoughts(self, request: GenerationRequest) -> bool:
        """Whether a prompt ends inside a model's thoughts, as far as its text is known."""
        if request.thinking is None:
            return False
        prompt = request.prompt
        return request.thinking.is_open(prompt if isinstance(prompt, str) else self.chats.rendered(prompt, None)[0])

    def _read_turns(self, turns: Sequence[tuple[Chat, str | None]]) -> None:
        new = [turn for turn in dict.fromkeys(turns) if turn not in self._turns]
        if new:
            self._remembered += sum(len(message.content) for chat, _ in new for message in chat.messages)
            self._turns.update(zip(new, self.chats.encoded(new), strict=True))

    def _read_pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._pairs]
        moved = {pair: _move_spaces(*pair) for pair in new}
        self._read(
            text for context, continuation in moved.values() if context for text in (context, context + continuation)
        )
        self._read_plain([continuation for context, continuation in moved.values() if not context])
        for pair, (context, continuation) in moved.items():
            self._pairs[pair] = self._split(context, continuation)

    def drafts(self, pairs: Sequence[tuple[str | Chat, str]]) -> list[Tokens]:
        """Tokens of each draft as they follow those of its prompt (see ``texts``), if they can as in running text."""
        prompts = self.texts([prompt for prompt, _ in pairs])
        written = [(prompt, draft) for prompt, draft in pairs if isinstance(prompt, str)]
        whole = iter(self.texts([f"{prompt}{draft}" for prompt, draft in written]))
        alone = iter(self.plain([draft for _, draft in written]))
        found: list[Tokens] = []
        for (asked, draft), prompt in zip(pairs, prompts, strict=True):
            if isinstance(asked, Chat):
                found.append(())
                with suppress(UserError):  # an answer that the template would not write so
                    found[-1] = self.pairs([(asked, draft)])[0][1]
                continue
            text, own = next(whole), next(alone)
            found.append(text[len(prompt) :] if text[: len(prompt)] == prompt else own)
        return found

    def plain(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of texts that stand by themselves, without special tokens around them."""
        self._make_room()
        self._read_plain(texts)
        return [self._plain[text] for text in texts]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to the text of those before it; empty where the tokenizer does not decode.

        A token by itself may lose the space that it begins with.
        """
        decode = getattr(self._tokenizer, "decode", None)
        if decode is None:
            return []
        texts = [
            decode(list(tokens[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for end in range(len(tokens) + 1)
        ]
        return [after[len(before) :] for before, after in pairwise(texts)]

    def _make_room(self) -> None:
        if self._remembered > MOST_REMEMBERED:
            for memory in (self._texts, self._plain, self._pairs, self._turns, self._written, self._may_end):
                memory.clear()
            self._remembered = 0

    def _split(self, context: str, continuation: str) -> tuple[Tokens, Tokens]:
        if not context:
            tokens = self._plain[continuation]
            prefix = self._prefix_token()
            return (tokens[:1], tokens[1:]) if tokens[:1] == (prefix,) else ((prefix,), tokens)
        before, whole = self._texts[context], self._texts[context + continuation]
        after = whole[len(before) :]
        if not after and continuation:
            # One token spans the seam: the continuation is tokenised by itself.
            self._read_plain([continuation])
            after = self._plain[continuation]
        return before or (self._prefix_token(),), after

    def may_end(self, token: int, stop: tuple[str, ...]) -> bool:
        """Whether a stop string can end with this token (a quick test before decoding a whole tail)."""
        key = (token, stop)
        if key not in self._may_end:
            text = self._tokenizer.decode([token], skip_special_tokens=False)
            # The replacement character stands for a part of a character.
            self._may_end[key] = "\ufffd" in text or any(word[-1] in text for word in stop)
        return self._may_end[key]

    def special_stops(self, stop: tuple[str, ...]) -> tuple[str, ...]:
        """The stop strings with special tokens in them, which decoding leaves out of an answer's text."""
        if stop not in self._special_stops:
            added = self._tokenizer.added_tokens_decoder.values()
            marks = {str(token) for token in added if token.special}
            self._special_stops[stop] = tuple(text for text in stop if any(mark in text for mark in marks))
        return self._special_stops[stop]

    def _prefix_token(self) -> int:
        if self._prefix is None:
            raise UserError(
                "the tokenizer has neither a BOS nor an EOS token, which an empty prompt needs; "
                "give every item a prompt"
            )
        return self._prefix

    def _read(self, texts: Iterable[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        marked = [text for text in new if self._bos_text and text.startswith(self._bos_text)]
        usual = [text for text in new if not (self._bos_text and text.startswith(self._bos_text))]
        self._texts.update(zip(marked, self._encode(marked, False), strict=True))
        self._texts.update(zip(usual, self._encode(usual, self._add_bos), strict=True))

    def _read_plain(self, texts: Iterable[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._plain]
        self._plain.update(zip(new, self._encode(new, False), strict=True))

    def _encode(self, texts: list[str], special: bool | None) -> list[Tokens]:
        if not texts:
            return []
        self._remembered += sum(map(len, texts))
        options = {} if special is None else {"add_special_tokens": special}
        encoded = self._tokens(texts, **options)
        if self._ending is None or special is False:
            return encoded
        return [tokens[:-1] if tokens[-1:] == (self._ending,) else tokens for tokens in encoded]

    def _tokens(self, texts: list[str], **options: bool) -> list[Tokens]:
        try:
            return [tuple(tokens) for tokens in self._tokenizer(texts, **options)["input_ids"]]
        except Exception as error:  # the library raises this very class for what is wrong with a tokenizer.json
            raise UserError(f"the tokenizer cannot read texts: {error!s:.300}") from None


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of the context go to the continuation, where tokenizers expect them."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation
