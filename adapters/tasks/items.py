"""Items of a task, read from JSON lines, with every problem named by file and line.

    {"prompt": "2 + 2 =", "answer": "4"}                     or a list of accepted answers
    {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}    the index or the text of the right choice
    {"text": "All of this is scored."}
    {"prompt": "What is this?", "image": "cat.png", "answer": "a cat"}     a picture, beside the file of items
    {"messages": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}     turns of a conversation, the user's last
    {"prompt": "def double(x):", "tests": "assert double(2) == 4"}     a program to write, and what it must pass

Other keys are allowed and ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mergefront.adapters.language_model import Message
from mergefront.adapters.tasks.records import read_records, with_fields
from mergefront.optimizer.foreign_text import file_content

KEYS = ("prompt", "messages", "answer", "choices", "text", "tests", "image")
ROLES = ("system", "user", "assistant")
MOST_PROBLEMS = 10


@dataclass(frozen=True)
class Item:
    """One question.

    ``id`` is a hash of the content (16 hexadecimal characters), so that the same question has the
    same id in every file and study. ``answers`` are the accepted answers; with ``choices``, ``right``
    holds the indices of the right ones. A text to score whole has an empty prompt and itself as answer.
    ``tests`` is the program that a generated one has to pass. Prompts that only measure have no answers. ``image`` is
    the path of the picture that the question is about. ``messages`` are the turns of a conversation, whose last one is
    the ``prompt``. ``seed`` is that of an answer which is drawn.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    tests: str = ""
    image: str = ""
    messages: tuple[Message, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class ReadItems:
    """What a file holds: its sound ``items``, the line of each, and the problems of the others."""

    items: tuple[Item, ...]
    lines: tuple[int, ...]
    problems: tuple[str, ...]

    def places(self, label: str) -> dict[str, str]:
        """File and line of each item, by its id."""
        return {item.id: f"{label}:{line}" for item, line in zip(self.items, self.lines, strict=True)}


def read_items(
    path: Path, label: str, required: tuple[tuple[str, ...], ...], fields: Mapping[Any, str] | None = None
) -> ReadItems:
    """Read a file of JSON lines or Parquet; never raises for what is in it.

    ``label`` names the file in problems (the path as the user wrote it); ``required`` are the sets
    of keys of which an item must have one, as metrics declare them. ``fields``: see ``with_fields``.
    """
    try:
        records = read_records(path)
    except FileNotFoundError:
        return ReadItems((), (), (f"{label}: there is no such file",))
    except IsADirectoryError:
        return ReadItems((), (), (f"{label}: is a folder; a JSONL file is needed",))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return ReadItems((), (), (f"{label[:200]}: cannot be read ({getattr(error, 'strerror', None) or error})",))
    items: list[Item] = []
    lines: list[int] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(records, start=1):
        if not line.strip():
            continue
        try:
            content = _object(line)
            item = parse_item(with_fields(content, fields) if fields else content, required, path.parent)
        except ValueError as error:
            problems.append(f"{label}:{number}: {error}")
            continue
        if item.id in seen:
            problems.append(f"{label}:{number}: repeats the item of line {seen[item.id]}; remove one of them")
            continue
        seen[item.id] = number
        items.append(item)
        lines.append(number)
    if not items and not problems:
        problems.append(f"{label}: has no items; write one JSON object a line")
    return ReadItems(tuple(items), tuple(lines), capped(problems, label))


def capped(problems: list[str], label: str) -> tuple[str, ...]:
    """The first problems, and how many more there are."""
    if len(problems) <= MOST_PROBLEMS:
        return tuple(problems)
    return (*problems[:MOST_PROBLEMS], f"{label}: and {len(problems) - MOST_PROBLEMS} more problems")


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f'is {_kind(content)} in JSON; an object such as {{"prompt": ..., "answer": ...}} is needed')
    return content


def image_paths(path: Path) -> list[str]:
    """The images that a JSONL file names, as it names them; nothing of lines and files that cannot be read."""
    try:
        lines = file_content(path).split(b"\n")
    except (OSError, ValueError):
        return []
    found: dict[str, None] = {}
    for line in lines:
        try:
            image = _object(line).get("image") if b'"image"' in line else None
        except ValueError:
            continue
        if isinstance(image, str) and image:
            found[image] = None
    return list(found)


def parse_item(content: Mapping[str, Any], required: tuple[tuple[str, ...], ...], folder: Path = Path()) -> Item:
    """One item from a JSON object; raises ``ValueError`` that says what is wrong and what would be right.

    An image's path is relative to ``folder``, and its content is part of the item's id.
    """
    image, digest = _image(content.get("image"), folder)
    without = {key: value for key, value in content.items() if key != "image"}
    return replace(_parsed({**without, "image": digest} if image else without, required), image=image)


def _image(given: Any, folder: Path) -> tuple[str, str]:
    """The path of an item's image and the hash of its content; both are empty for an item without one."""
    if not given:
        return "", ""
    if not isinstance(given, str):
        raise ValueError(f"'image' is {_kind(given)}; it must be the path of a file")
    path = folder / given
    try:
        return str(path), hashlib.sha256(file_content(path)).hexdigest()
    except (OSError, ValueError):
        raise ValueError(f"the image {given[:200]!r} cannot be read; its path is relative to this file") from None


def _parsed(content: Mapping[str, Any], required: tuple[tuple[str, ...], ...]) -> Item:
    messages = _messages(content["messages"]) if "messages" in content else ()
    if messages:
        if "prompt" in content or "text" in content:
            raise ValueError(f"has 'messages' and {'prompt' if 'prompt' in content else 'text'!r}; keep one of them")
        required = tuple(tuple("messages" if key == "prompt" else key for key in keys) for keys in required)
    if not any(all(key in content for key in keys) for keys in required):
        nearest = min(required, key=lambda keys: sum(key not in content for key in keys))
        missing = next(key for key in nearest if key not in content)
        near = get_close_matches(missing, [key for key in content if key not in KEYS], n=1)
        hint = f" (is {near[0]!r} meant?)" if near else ""
        needed = " or ".join("+".join(keys) for keys in required)
        raise ValueError(f"the key {missing!r} is missing{hint}; the metric needs {needed}")
    if "text" in content and ("prompt" in content or "choices" in content):
        raise ValueError("has 'text' and 'prompt' or 'choices'; an item is either a text or a question")
    used = {key: content[key] for key in KEYS if key in content}
    digest = hashlib.sha256(
        json.dumps(used, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
    ).hexdigest()[:16]
    if "text" in content:
        return Item(digest, "", (_text("text", content["text"]),))
    prompt = messages[-1].content if messages else content.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"'prompt' is {_kind(prompt)}; it must be a string")
    if "choices" in content:
        return replace(_choices_item(digest, prompt, content["choices"], content.get("answer")), messages=messages)
    tests = _text("tests", content["tests"]) if "tests" in content else ""
    if "answer" not in content:
        return Item(digest, prompt, (), tests=tests, messages=messages)
    given = content["answer"]
    answers = given if isinstance(given, list) else [given]
    if not answers:
        raise ValueError("'answer' is an empty list; give at least one answer")
    return Item(digest, prompt, tuple(_text("answer", answer) for answer in answers), tests=tests, messages=messages)


def _messages(given: Any) -> tuple[Message, ...]:
    """The turns of a conversation: perhaps a system message first, and the user's last."""
    if not isinstance(given, list) or not given:
        raise ValueError('\'messages\' must be a list of turns such as {"role": "user", "content": "2 + 2?"}')
    found = []
    for place, turn in enumerate(given):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise ValueError(f"message {place + 1} has no 'role' and 'content'")
        if turn["role"] not in ROLES:
            raise ValueError(f"message {place + 1} has the role {turn['role']!r:.60}; roles are {', '.join(ROLES)}")
        if turn["role"] == "system" and place:
            raise ValueError(f"message {place + 1} is the system's, which can only be the first")
        found.append(Message(turn["role"], _text("content", turn["content"])))
    if found[-1].role != "user":
        raise ValueError(f"the last message is the {found[-1].role}'s; it must be the user's, which the model answers")
    return tuple(found)


def _choices_item(digest: str, prompt: str, choices: Any, answer: Any) -> Item:
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError("'choices' must be a list of two or more strings")
    texts = tuple(_text("choices", choice) for choice in choices)
    if len(set(texts)) < len(texts):
        raise ValueError("'choices' has the same choice twice")
    right: list[int] = []
    for one in answer if isinstance(answer, list) else [answer]:
        if isinstance(one, str):
            if one not in texts:
                raise ValueError(f"'answer' is {one!r}, which is none of the choices")
            right.append(texts.index(one))
        elif isinstance(one, int) and not isinstance(one, bool):
            if not 0 <= one < len(texts):
                raise ValueError(f"'answer' is {one}; with {len(texts)} choices it must lie in [0, {len(texts) - 1}]")
            right.append(one)
        else:
            raise ValueError(f"'answer' is {_kind(one)}; it must be the index or the text of the right choice")
    if not right or len(set(right)) == len(texts):
        raise ValueError("'answer' must name at least one choice, and not all of them")
    return Item(digest, prompt, tuple(texts[index] for index in right), texts, tuple(dict.fromkeys(right)))


def _text(key: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {_kind(value)}; it must be a string")
    if not value.strip():
        raise ValueError(f"{key!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{key!r} has half of a surrogate pair, which is no character") from None
    return value


def _kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a switch",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)
