"""What tasks will ask, shown before anything is asked: one prompt and answer of each, token by token at the seam, and
the traps of white space, begin tokens, chat templates, stop strings and lengths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergefront.adapters.language_model import Chat
from mergefront.adapters.tasks.conversations import texts_of
from mergefront.adapters.tasks.questions import Question
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.foreign_text import visible

_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|<(?:start|end)_of_turn>|\[/?INST\]")
"""What the chat templates of the field write around messages."""
_BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>")
_BLANKS = (" ", "\t")
_MOST_SHOWN = 60
"""Characters of a prompt or an answer that are shown."""
_MOST_OF_CHAT = 600
"""Characters of a conversation that are shown."""
_SEAM = 4
"""Tokens that are shown on each side of the seam."""
_FRAME = 4
"""Special tokens that a tokenizer puts around a text, at most."""
_MOST_COUNTED = 64
"""Texts whose tokens a server is asked to count."""


@dataclass(frozen=True)
class Reader:
    """How a backend reads texts, as far as that is known before it is asked.

    ``tokenization`` is None where the tokens are not known, and ``longest`` (prompt and answer together, in tokens)
    where the length is not. ``template`` is the tokenizer's chat template, ``is_chat`` says that each prompt is sent as
    a message of a user, ``is_split`` that prompt and answer are two texts (encoder-decoders), ``is_remote`` that a
    server of others' makes reads texts, each at the price of a request. ``refuses_chat`` says why a conversation cannot
    be put to it (nothing where it can), ``ends`` are the tokens that end an answer (none where they are not known).
    """

    tokenization: Tokenization | None = None
    longest: int | None = None
    template: str = ""
    is_chat: bool = False
    is_split: bool = False
    is_remote: bool = False
    ends: frozenset[int] = frozenset()
    refuses_chat: Callable[[Chat], str] = lambda _: ""


def assembled(question: Question, reader: Reader) -> str:
    """One prompt and answer in one line, with their tokens at the seam; a conversation as its template writes it.

    Raises ``UserError`` for a conversation that the template refuses.
    """
    prompt, answer = question.prompt, question.answers[0] if question.answers else ""
    is_scored = answer != "" and question.new_tokens is None
    if isinstance(prompt, Chat):
        shown, said = _conversation(prompt, answer if is_scored else None, reader)
    else:
        shown, said = _quoted(prompt, from_end=True), answer
    shown += f" + {_quoted(said or answer)}" if answer else ""
    if question.new_tokens is not None:
        stops = " or ".join(_quoted(stop) for stop in question.stop)
        shown += f", at most {question.new_tokens} new tokens" + (f", up to {stops}" if stops else "")
    if reader.is_chat:
        return shown if isinstance(prompt, Chat) else f"{shown} (the prompt as the message of a user)"
    if reader.tokenization is None or reader.is_split or question.image:
        return shown
    if is_scored or (isinstance(prompt, str) and prompt == prompt.rstrip()):
        before, after = reader.tokenization.pairs([(prompt, answer)])[0]
    else:  # a model goes on behind the white space, and behind what opens its turn
        before, after = reader.tokenization.texts([prompt])[0], ()
    total = f"{len(before)} + {len(after)} tokens" if after else f"{len(before)} tokens"
    start = max(0, len(before) - _SEAM)
    # One token more is spelled, so that the first one shown keeps its space.
    spelled = reader.tokenization.pieces((*before[max(0, start - 1) :], *after[:_SEAM]))[min(start, 1) :]
    if not spelled:
        return f"{shown} ({total})"
    left, right = spelled[: len(before) - start], spelled[len(before) - start :]
    seam = f"{'... ' if start else ''}{' '.join(map(repr, left))} | {' '.join(map(repr, right))}"
    return f"{shown} ({total}: {visible(seam.rstrip())})"


def _conversation(chat: Chat, answer: str | None, reader: Reader) -> tuple[str, str]:
    """A conversation as far as it is known here, and an answer in the assistant's turn."""
    if reader.tokenization is not None:
        before, after = reader.tokenization.chats.rendered(chat, answer)
        if before:
            half = _MOST_OF_CHAT // 2
            cut = before if len(before) <= _MOST_OF_CHAT else f"{before[:half]} ... {before[-half:]}"
            return visible(repr(cut)), after
    turns = (f"{one.role}: {_quoted(one.content, from_end=True)}" for one in chat.messages)
    return f"[{', '.join(turns)}] by the server's chat template", ""


def chat_refusals(asked: Sequence[Question], reader: Reader) -> list[str]:
    """Why conversations cannot be put to a model, a line for each cause, with the first item that shows it."""
    places: dict[str, list[str]] = {}
    for question in asked[: _MOST_COUNTED if reader.is_remote else None]:
        if not isinstance(question.prompt, Chat):
            continue
        why = reader.refuses_chat(question.prompt)
        if not why and reader.tokenization is not None:
            try:
                answers = question.answers if question.new_tokens is None else ()
                reader.tokenization.pairs([(question.prompt, answer) for answer in answers])
                reader.tokenization.texts([question.prompt])
                unread = reader.tokenization.chats.unread(question.prompt)
                why = f"the chat template does not read {', '.join(unread)}" if unread else ""
            except UserError as error:
                why = str(error)
        if why:
            places.setdefault(why, []).append(question.place)
    return [
        f"{found[0] or 'an item'}: {why}" + (f" ({len(found)} of {len(asked)} items)" if len(found) > 1 else "")
        for why, found in places.items()
    ]


def _quoted(text: str, from_end: bool = False) -> str:
    cut = text[-_MOST_SHOWN:] if from_end else text[:_MOST_SHOWN]
    if len(cut) == len(text):
        return visible(repr(text))
    return visible(f"...{cut!r}" if from_end else f"{cut!r}...")


def traps(questions: Mapping[str, Sequence[Question]], reader: Reader) -> list[str]:
    """What is likely to be a mistake in the questions of each task, a line for each cause."""
    tasks_of: dict[str, list[str]] = {}
    for task, asked in questions.items():
        for line in _traps_of_one(asked, reader):
            tasks_of.setdefault(line, []).append(task)
    return [f"task{'s' if len(tasks) > 1 else ''} {', '.join(tasks)}: {line}" for line, tasks in tasks_of.items()]


def _traps_of_one(asked: Sequence[Question], reader: Reader) -> Iterator[str]:
    for found, what in _OF_QUESTIONS:
        count = sum(found(question) for question in asked)
        if count:
            yield f"{count} of {len(asked)} {what}"
    if reader.is_chat:
        count = sum(any(map(_MARK.search, texts_of(question.prompt))) for question in asked)
        if count:
            yield (
                f"{count} of {len(asked)} prompts are written in a chat template, and the endpoint puts them into its "
                "own again; take the marks out, or use mode: completions"
            )
        return
    closed = sum(_closes_thoughts(question, reader) for question in asked)
    if closed:
        yield (
            f"{closed} of {len(asked)} prompts close the model's thoughts before it writes, so that it will not think; "
            "leave thinking out, or let the template open them (enable_thinking)"
        )
    yield from _conversations([one.prompt for one in asked if isinstance(one.prompt, Chat)], reader)
    texts = [question for question in asked if not question.image]
    if reader.is_remote:
        special = sorted({stop for question in texts for stop in question.stop if _MARK.search(stop)})
        if special:
            yield (
                f"the stop string {special[0]!r} is a special token, which servers leave out of the text that they "
                "look for it in; they end there only where it ends the model's turn"
            )
    written = [question for question in texts if isinstance(question.prompt, str)]
    yield from _begin_tokens(written, reader)
    yield from _templates(written, reader)
    yield from _lengths(texts, reader)


def _conversations(chats: Sequence[Chat], reader: Reader) -> Iterator[str]:
    marked = sum(any(map(_MARK.search, texts_of(chat))) for chat in chats)
    if marked:
        yield (
            f"{marked} of {len(chats)} conversations hold marks of a chat template, which writes its own; take them out"
        )
    if not chats or reader.tokenization is None:
        return
    told = next((chat for chat in chats if chat.optional_system and chat.messages[0].role == "system"), None)
    text = "" if told is None else reader.tokenization.chats.rendered(told, None)[0]
    if told is not None and text and told.messages[0].content.strip() not in text:
        yield "the chat template refuses system messages, and the task's description is left out, as the harness does"
    closing = reader.tokenization.chats.closing(chats[0])
    if reader.ends and closing and not reader.ends & set(closing):
        text = "".join(reader.tokenization.pieces(closing)).strip()
        yield (
            f"the chat template ends a turn with {text!r}, which ends no answer of this model; give the task "
            f"stop: {text!r}, or take the instruct model's generation_config.json"
        )


def _closes_thoughts(question: Question, reader: Reader) -> bool:
    if question.thinking is None:
        return False
    return "".join(_written(question.prompt, reader)).rstrip().endswith(question.thinking.end)


def _begin_tokens(asked: Sequence[Question], reader: Reader) -> Iterator[str]:
    tokenization = reader.tokenization
    if tokenization is None:
        written = sum(_raw(question).startswith(_BEGINS) for question in asked)
        if written and reader.is_remote:
            yield (
                f"{written} of {len(asked)} prompts begin with the text of a begin token, which endpoints put before a "
                "prompt themselves; take it out of the prompts"
            )
        return
    begin = tokenization.begin
    if begin is None or reader.is_split or not asked:
        return
    first = [tokens[:2] for tokens in tokenization.texts([question.prompt for question in _some(asked, reader)])]
    doubled = sum(tokens == (begin, begin) for tokens in first)
    if doubled:
        yield f"{doubled} of {len(first)} prompts begin with two begin tokens; take its text out of the prompts"
    if tokenization.begin_differs_from_end and not any(tokens[0] == begin for tokens in first):
        yield (
            "no prompt begins with the tokenizer's begin token, as its settings have it; a model that was trained with "
            "one answers badly without (add_bos_token in tokenizer_config.json, or its text in the prompts)"
        )


def _templates(asked: Sequence[Question], reader: Reader) -> Iterator[str]:
    of_template = set(_MARK.findall(reader.template))
    used = Counter(mark for question in asked for mark in set(_MARK.findall(_raw(question))))
    if of_template and asked and not of_template & used.keys():
        yield (
            "the model has a chat template and the prompts are not written in it; if it is an instruct model, ask it "
            "in chat: true (tasks of type lm_eval: apply_chat_template: true)"
        )
    if reader.tokenization is None or reader.is_remote:
        return
    for mark, count in used.items():
        if not mark.startswith("[") and len(reader.tokenization.plain([mark])[0]) > 1:
            yield (
                f"{count} of {len(asked)} prompts hold {mark}, which is no token of this tokenizer: the model reads it "
                "letter by letter"
            )


def _lengths(asked: Sequence[Question], reader: Reader) -> Iterator[str]:
    """Prompts that will lose their beginning, and answers that are longer than what is written."""
    tokenization = reader.tokenization
    if tokenization is None:
        return
    if reader.longest is not None:
        counts = _long_counts(asked, reader, tokenization, reader.longest)
        over = [count for count in counts if count > reader.longest]
        if over:
            at_least = "at least " if reader.is_remote and len(over) == _MOST_COUNTED else ""
            yield (
                f"{at_least}{len(over)} of {len(asked)} prompts are longer than the model reads ({reader.longest} "
                f"tokens, the answer included; the longest has {max(over)}), and lose their beginning"
            )
    if reader.is_remote:
        return
    written = [one for one in asked if one.new_tokens is not None and one.answers]
    sizes = map(len, tokenization.plain([min(one.answers, key=len) for one in written]))
    too_long = sum(size > (one.new_tokens or 0) for one, size in zip(written, sizes, strict=True))
    if too_long:
        yield f"{too_long} of {len(asked)} accepted answers are longer than max_new_tokens"


def _long_counts(asked: Sequence[Question], reader: Reader, tokenization: Tokenization, longest: int) -> Sequence[int]:
    """Tokens of the questions that might be longer than ``longest``, the answer included."""

    def size(text: str) -> int:
        return len(text.encode("utf-8", "replace"))

    # A token has at least one byte, so that most questions need not be counted.
    rows = [(one, max(one.answers, key=size, default="")) for one in asked if one.prompt]
    before = [sum(map(size, _written(one.prompt, reader))) for one, _ in rows]
    after = [size(answer) if one.new_tokens is None else one.new_tokens for one, answer in rows]
    sizes = [first + second for first, second in zip(before, after, strict=True)]
    might = sorted((place for place, most in enumerate(sizes) if most + _FRAME > longest), key=sizes.__getitem__)
    rows = [rows[place] for place in (might[-_MOST_COUNTED:] if reader.is_remote else might)]
    scored = [(one.prompt, answer) for one, answer in rows if one.new_tokens is None and not reader.is_split]
    written = [one for one, _ in rows if one.new_tokens is not None or reader.is_split]
    counts = [len(before) + len(after) - 1 for before, after in tokenization.pairs(scored)]
    for one, tokens in zip(written, tokenization.texts([one.prompt for one in written]), strict=True):
        counts.append(len(tokens) + (0 if reader.is_split else one.new_tokens or 0))
    return counts


def _written(prompt: str | Chat, reader: Reader) -> Sequence[str]:
    """The texts of a prompt; of a conversation, what its template writes where that is known here."""
    if isinstance(prompt, Chat) and not reader.is_remote and reader.tokenization is not None:
        return reader.tokenization.chats.rendered(prompt, None)
    return texts_of(prompt)


def _some(asked: Sequence[Question], reader: Reader) -> Sequence[Question]:
    return asked[:_MOST_COUNTED] if reader.is_remote else asked


def _raw(question: Question) -> str:
    """The prompt where it is put to a model as it stands; nothing of a conversation."""
    return question.prompt if isinstance(question.prompt, str) else ""


def _is_doubled(question: Question) -> bool:
    prompt = _raw(question)
    return any(
        (prompt.endswith(_BLANKS) and answer.startswith(_BLANKS))
        or (prompt[-1:] not in ("", "\n") and answer[:1] in _BLANKS and answer[1:2] in _BLANKS)
        for answer in question.answers
    )


_OF_QUESTIONS: Sequence[tuple[Callable[[Question], bool], str]] = (
    (
        _is_doubled,
        "answers follow their prompt after two spaces; take one out of the data, or leave delimiter out",
    ),
    (
        lambda question: question.new_tokens is not None and _raw(question).endswith(_BLANKS),
        "prompts end with a space, which models write as part of the next word; take it out of the prompts",
    ),
    (
        lambda question: (
            question.answers != ()
            and all(any(stop in answer.strip() for stop in question.stop) for answer in question.answers)
        ),
        "accepted answers hold a stop string, where every model's answer ends; change stop",
    ),
)
"""Mistakes that a question shows by itself, and what is said of the number of them."""
