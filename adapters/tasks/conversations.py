"""The option ``chat`` of a task: its items are put to models as conversations, by their chat templates."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from mergefront.adapters.chat_templates import RESERVED, TODAY, check_template
from mergefront.adapters.language_model import Chat, Message
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.options import as_section
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.foreign_text import file_content
from mergefront.optimizer.sections import OpenSection


class ChatSection(OpenSection):
    """How items become conversations; every other key is a variable of the template."""

    system: str | None = Field(None, min_length=1, description="a system message before every item")
    template: str | None = Field(
        None, min_length=1, description="a Jinja file, or the name of one of the tokenizer's templates"
    )
    date: str | None = Field(
        None, title="a date such as '2024-07-26'", description="the day that templates write which ask for today's"
    )

    @model_validator(mode="after")
    def _can_be_told(self) -> ChatSection:
        taken = RESERVED & self.options.keys()
        if taken:
            raise ValueError(f"{min(taken)!r} is set for each item; leave it out")
        try:
            date.fromisoformat(self.date or TODAY)
            json.dumps(self.options, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(f"it must have a 'date' such as '{TODAY}', and values that JSON can hold") from None
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Variables of the template."""
        return {key: value for key, value in (self.model_extra or {}).items() if key not in self.misspelt}


Chats = Annotated[ChatSection | None, BeforeValidator(as_section, json_schema_input_type=bool | ChatSection | None)]
"""``true``, or a mapping."""


def template_file(value: Any) -> str:
    """The file of a template that the option names, where it looks like one; else nothing."""
    named = str(value.get("template", "")) if isinstance(value, Mapping) else ""
    return named if named.endswith((".jinja", ".jinja2", ".j2", ".txt")) or os.sep in named else ""


def with_template(chat: ChatSection, folder: Path) -> tuple[ChatSection, list[str]]:
    """The option with the text of the template file that it names, and what is wrong with that file."""
    file = template_file(chat.model_dump())
    if not file:
        return chat, []
    try:
        text = file_content(folder / file).decode("utf-8")
    except (OSError, UnicodeError) as error:
        return chat, [f"chat.template {file}: cannot be read ({getattr(error, 'strerror', None) or error})"]
    try:
        check_template(text)
    except UserError as error:
        return chat.model_copy(update={"template": None}), [f"chat.template {file}: {error}"]
    return chat.model_copy(update={"template": text}), []


def chat_fault(item: Item, chat: ChatSection | None) -> str | None:
    """Why an item cannot be put to models so, or None."""
    if chat is None:
        return "has 'messages', which only a task with chat: true puts to models" if item.messages else None
    if item.image:
        return "has an image, which models are shown by their own template; take chat out of the task"
    if chat.system and item.messages[:1] and item.messages[0].role == "system":
        return "has a system message, and so has the task (chat.system); keep one of them"
    return None


def asked(item: Item, chat: ChatSection | None) -> str | Chat:
    """What is put to a model: the item's conversation, or its prompt as it stands. A text to score whole stays raw."""
    if chat is None or not item.prompt:
        return item.prompt
    system = (Message("system", chat.system),) if chat.system else ()
    turns = item.messages or (Message("user", item.prompt),)
    options = json.dumps(chat.options, sort_keys=True)
    return Chat((*system, *turns), chat.template or "", options, chat.date or "")


def texts_of(prompt: str | Chat) -> Sequence[str]:
    """What a prompt says, turn by turn."""
    return [prompt] if isinstance(prompt, str) else [message.content for message in prompt.messages]
