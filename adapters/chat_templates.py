"""Chat templates: messages as the text that a tokenizer's template writes.

    template = ChatTemplate.of_tokenizer(tokenizer)
    text = template.prompt([{"role": "user", "content": "2 + 2 ="}], {"enable_thinking": False})
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]      # the template writes its own begin token

Templates are rendered as transformers renders them, apart from the date: one that asks for today's gets a fixed one, so
that a study asks the same on every day.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from mergefront.adapters.language_model import Chat, Tokens
from mergefront.optimizer.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import jinja2

Messages = Sequence[Mapping[str, Any]]
"""Turns of a conversation, each with "role" and "content"."""

TODAY = "2024-07-26"
"""The date that templates write: the one that Llama's have where nobody tells them another."""
RESERVED = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now"})
"""Variables of templates that rendering sets itself."""
_END = "\ue000"
"""Marks the end of an answer in a rendered text; a character of private use, which no text has."""


class ChatTemplate:
    """A Jinja template, and the special tokens (``bos_token``, ``eos_token`` ...) that it may write.

    Options are variables of the template, such as ``enable_thinking``. Raises ``UserError`` for a text that is no
    template; its methods do for messages that the template refuses or leaves out.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        self.text = text
        self._special_tokens = dict(special_tokens)
        self._compiled = _compiled(text)

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, template: str = "") -> ChatTemplate:
        """The tokenizer's own template; ``template`` is the name of one of several, or the text of another."""
        own = getattr(tokenizer, "chat_template", None) or {}
        named: Mapping[str, str] = {"default": own} if isinstance(own, str) else own
        tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        if template in named:
            return cls(named[template], tokens)
        if _is_jinja(template):
            return cls(template, tokens)
        if template:
            raise UserError(
                f"there is no chat template {template!r}: it is no file, and the tokenizer has "
                f"{'none of that name ' + did_you_mean(template, named) if named else 'none at all'}"
            )
        if "default" not in named:
            why = f"only templates called {', '.join(named)}; name one" if named else "no chat template; give one"
            raise UserError(
                f"the tokenizer has {why} (chat: {{template: {next(iter(named), 'FILE.jinja')}}}), or take the "
                "tokenizer of the instruct model (merge.tokenizer_source)"
            )
        return cls(named["default"], tokens)

    def prompt(self, messages: Messages, options: Mapping[str, Any] | None = None, today: str = "") -> str:
        """The messages and what opens the assistant's turn.

        Raises ``UserError`` where the template refuses the messages' roles, or leaves out what one of them says.
        """
        text = self.render(messages, options, today, add_generation_prompt=True)
        for message in messages:
            said = message["content"]
            if message["role"] != "assistant" and isinstance(said, str) and said.strip() not in text:
                role = message["role"]
                remedy = (
                    "take it out of the items" if role == "system" else "give another (chat: {template: FILE.jinja})"
                )
                raise UserError(f"the chat template leaves out the {role} message; {remedy}")
        return text

    def turn(
        self, messages: Messages, answer: str, options: Mapping[str, Any] | None = None, today: str = ""
    ) -> tuple[str, str]:
        """The prompt, and ``answer`` as the assistant's turn continues it, without what ends the turn.

        Where an assistant's turn does not begin as the prompt ends (a prompt that opens a thinking model's thoughts),
        the first part is what stands before the answer in such a turn.
        """
        prompt = self.prompt(messages, options, today)
        marked = answer.strip() + _END
        whole = self.render([*messages, {"role": "assistant", "content": marked}], options, today)
        end = whole.rfind(marked)
        if end < 0:
            raise UserError("the chat template changes the assistant's turn, so that its answers cannot be scored")
        whole, start = whole[: end + len(marked) - len(_END)], end
        return (prompt, whole[len(prompt) :]) if whole.startswith(prompt) else (whole[:start], whole[start:])

    def render(
        self,
        messages: Messages,
        options: Mapping[str, Any] | None = None,
        today: str = "",
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The messages as the template writes them, whatever it leaves out."""
        variables = {"tools": None, "documents": None, **self._special_tokens, **(options or {})}
        try:
            return self._compiled.render(
                **variables,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                strftime_now=date.fromisoformat(today or TODAY).strftime,
            )
        except Exception as error:  # whatever a stranger's template makes of the messages
            roles = ", ".join(str(message.get("role")) for message in messages)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the chat template refuses messages of the roles {roles}: {reason:.200}") from None

    def closing(self, messages: Messages, options: Mapping[str, Any] | None = None) -> str:
        """What the template writes behind an assistant's turn."""
        return self.render([*messages, {"role": "assistant", "content": _END}], options).rpartition(_END)[2]

    @cached_property
    def variables(self) -> set[str]:
        """What the template reads."""
        from jinja2 import meta

        return meta.find_undeclared_variables(_environment().parse(self.text))

    def unread(self, options: Mapping[str, Any]) -> list[str]:
        """The options that the template has no use for."""
        return [name for name in options if name not in self.variables]


class ChatReader(Protocol):
    """How a model reads conversations. Raises ``UserError`` for those that it cannot."""

    def rendered(self, chat: Chat, answer: str | None) -> tuple[str, str]:
        """The text of the prompt and of an answer in the assistant's turn; empty where only tokens are known."""

    def encoded(self, asked: Sequence[tuple[Chat, str | None]]) -> list[tuple[Tokens, Tokens]]:
        """The tokens of each prompt, and those of an answer in the assistant's turn (none where there is no answer)."""

    def unread(self, chat: Chat) -> list[str]:
        """The options that the template has no use for, each with a hint, as far as that is known."""

    def closing(self, chat: Chat) -> Tokens:
        """The tokens behind an assistant's turn, as far as they are known."""


class TemplateReader:
    """Reads conversations by the template of a ``tokenizer``, or by templates that they bring along."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._templates: dict[str, ChatTemplate] = {}

    def template(self, named: str = "") -> ChatTemplate:
        """See ``ChatTemplate.of_tokenizer``."""
        if named not in self._templates:
            self._templates[named] = ChatTemplate.of_tokenizer(self._tokenizer, named)
        return self._templates[named]

    def rendered(self, chat: Chat, answer: str | None) -> tuple[str, str]:
        if chat.as_text:
            return self._text(chat), answer or ""
        template, options, messages = self._read(chat)
        if answer is None:
            return template.prompt(messages, options, chat.today), ""
        return template.turn(messages, answer, options, chat.today)

    def _text(self, chat: Chat) -> str:
        """A conversation up to where the assistant goes on; without its system message where that may be missing and is
        refused."""
        template, options, messages = self._read(chat)
        try:
            if not chat.is_begun:
                return template.prompt(messages, options, chat.today)
            return "".join(template.turn(messages[:-1], chat.messages[-1].content, options, chat.today))
        except UserError:
            if not (chat.optional_system and chat.messages[0].role == "system"):
                raise
            return self._text(replace(chat, messages=chat.messages[1:]))

    def _read(self, chat: Chat) -> tuple[ChatTemplate, dict[str, Any], list[dict[str, Any]]]:
        messages = [{"role": one.role, "content": one.content} for one in chat.messages]
        return self.template(chat.template), json.loads(chat.options), messages

    def encoded(self, asked: Sequence[tuple[Chat, str | None]]) -> list[tuple[Tokens, Tokens]]:
        return encoded_turns([self.rendered(chat, answer) for chat, answer in asked], self._encode)

    def unread(self, chat: Chat) -> list[str]:
        template = self.template(chat.template)
        known = (template.variables - RESERVED) | {"system", "template", "date"}
        return [f"{name!r} {did_you_mean(name, known)}" for name in template.unread(json.loads(chat.options))]

    def closing(self, chat: Chat) -> Tokens:
        template, options, messages = self._read(chat)
        turn = [message for message in messages if message["role"] == "user"][:1]
        (tokens,) = self._encode([template.closing(turn if chat.as_text else messages, options)])
        return tokens

    def _encode(self, texts: list[str]) -> list[Tokens]:
        if not texts:
            return []
        return [tuple(tokens) for tokens in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]


def encoded_turns(
    turns: Sequence[tuple[str, str]], encode: Callable[[list[str]], list[Tokens]]
) -> list[tuple[Tokens, Tokens]]:
    """Prompts and answers in tokens: an answer's are those that follow the prompt's in the text of both.

    Where one token spans the seam, the answer is encoded by itself, as a model that goes on behind the prompt sees it.
    """
    different = dict.fromkeys(text for before, answer in turns for text in (before, before + answer))
    known = dict(zip(different, encode(list(different)), strict=True))
    spanned = {answer: () for before, answer in turns if known[before + answer][: len(known[before])] != known[before]}
    alone = dict(zip(spanned, encode(list(spanned)), strict=True))
    return [(known[one], alone.get(two, known[one + two][len(known[one]) :])) for one, two in turns]


def check_template(text: str) -> None:
    """Raises ``UserError`` where a text is no valid Jinja template."""
    _compiled(text)


def _is_jinja(template: str) -> bool:
    return "{{" in template or "{%" in template


def _compiled(text: str) -> jinja2.Template:
    try:
        environment = _environment()
    except ImportError:
        raise UserError("chat templates need jinja2; install it with: pip install 'mergefront[local]'") from None
    try:
        return environment.from_string(text)
    except Exception as error:
        place = f" (line {line})" if (line := getattr(error, "lineno", None)) else ""
        raise UserError(f"the chat template is no valid Jinja template: {error!s:.200}{place}") from None


def _environment() -> jinja2.Environment:
    """A sandbox with what templates of the field use beyond Jinja itself."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlocks(Extension):
        """``{% generation %}`` marks what an assistant writes, for training; here it is text like any other."""

        tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols]
    )
    made.filters["tojson"] = as_json
    made.globals["raise_exception"] = refuse
    return made
