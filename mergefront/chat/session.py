"""A conversation with the merges of a study: lines are prompts, and those that begin with a slash are commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from mergefront.chat.generation import Answer, Sampling, Show
from mergefront.chat.merges import Merge, Merges
from mergefront.chat.speakers import Speaker
from mergefront.formatting import duration
from mergefront.optimizer.errors import UserError, did_you_mean

Ask = Callable[[Show], Answer]
"""Has one question answered; hands the answer on as it is written."""


class Output(Protocol):
    """Where a conversation is shown."""

    def note(self, line: str) -> None:
        """What is said about the conversation."""
        ...

    def answer(self, ask: Ask) -> Answer:
        """An answer, as it is written."""
        ...

    def side_by_side(self, asked: Sequence[tuple[str, Ask]]) -> None:
        """Several answers to one question, each under its name, up to one that the user ends."""
        ...


@dataclass
class Chat:
    """``current`` answers; ``turns`` holds what was said since the last /reset, without the system message."""

    merges: Merges
    speaker: Speaker
    output: Output
    current: Merge
    sampling: Sampling
    system: str = ""
    turns: list[Mapping[str, str]] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Answer a line, or do what it says. Raises ``MergefrontError`` for one that cannot be answered or done."""
        text = line.strip()
        if not text:
            return
        if not text.startswith("/"):
            self._say(text)
            return
        name, _, rest = text[1:].partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            raise UserError(f"there is no command /{name} {did_you_mean(name, COMMANDS)}; /help lists them")
        command.do(self, rest.strip())

    def turn_to(self, merge: Merge) -> None:
        """Talk to another merge; what was said stays."""
        seconds = self.speaker.turn_to(merge.recipe)
        self.current = merge
        self.output.note(f"{merge.label} answers now (merged in {seconds:.2f} s)")

    def _say(self, text: str) -> None:
        question = {"role": "user", "content": text}
        answer = self.output.answer(self._asking(self.current, [*self.turns, question]))
        self.turns += [question, {"role": "assistant", "content": answer.text}]

    def _asking(self, merge: Merge, turns: Sequence[Mapping[str, str]]) -> Ask:
        head = [{"role": "system", "content": self.system}] if self.system else []

        def ask(show: Show) -> Answer:
            self.speaker.turn_to(merge.recipe)
            answer, note = self.speaker.answer([*head, *turns], self.sampling, show)
            if note:
                self.output.note(note)
            return answer

        return ask

    def choose_trial(self, rest: str) -> None:
        if not rest.isdecimal():
            raise UserError(f"/trial {rest}: write the number of a trial, such as /trial 14")
        self.turn_to(self.merges.trial(int(rest)))

    def choose_base(self, rest: str) -> None:
        self.turn_to(self.merges.base())

    def choose_expert(self, rest: str) -> None:
        self.turn_to(self.merges.expert(rest))

    def compare(self, rest: str) -> None:
        merges, words = [], rest.split()
        while words and (found := self.merges.called(words[0])) is not None:
            merges.append(found)
            words.pop(0)
        # The prompt as it was written: spaces count.
        prompt = rest[rest.index(words[0]) :] if words else ""
        before = list(self.turns)
        if not prompt and before:
            prompt, before = before[-2]["content"], before[:-2]
        if not merges or not prompt:
            what = "there is no question yet" if merges else "it names no merge"
            raise UserError(f"/compare {rest}: {what}; write trials, base or experts and a prompt, as /help shows")
        turns = [*before, {"role": "user", "content": prompt}]
        self.output.side_by_side([(merge.label, self._asking(merge, turns)) for merge in merges])

    def set_system(self, rest: str) -> None:
        if rest and not self.speaker.has_template:
            raise UserError("/system: without a chat template there are no messages; put it into your text")
        self.system, self.turns = rest, []
        self.output.note("a new conversation" + (f" under: {rest}" if rest else ", without a system message"))

    def reset(self, rest: str) -> None:
        self.turns = []
        self.output.note("a new conversation")

    def set_temperature(self, rest: str) -> None:
        self.sampling = replace(self.sampling, temperature=read_temperature(rest))
        self.output.note(f"temperature {self.sampling.temperature:g}")

    def set_length(self, rest: str) -> None:
        if not rest.isdecimal() or not int(rest):
            raise UserError(f"/max-new-tokens {rest}: write a whole number above 0, such as 200")
        self.sampling = replace(self.sampling, max_new_tokens=int(rest))
        self.output.note(f"at most {rest} tokens an answer")

    def help(self, rest: str) -> None:
        width = max(len(command.usage) for command in COMMANDS.values())
        for command in COMMANDS.values():
            self.output.note(f"{command.usage:<{width}}  {command.what}")


@dataclass(frozen=True)
class Command:
    """``usage`` and ``what`` are for /help; ``do`` gets what stands behind the command's name."""

    usage: str
    what: str
    do: Callable[[Chat, str], None]


COMMANDS: Mapping[str, Command] = {
    "trial": Command("/trial 14", "talk to this trial; what was said stays", Chat.choose_trial),
    "base": Command("/base", "talk to the base model", Chat.choose_base),
    "expert": Command("/expert NAME", "talk to one expert alone", Chat.choose_expert),
    "compare": Command("/compare 14 base [PROMPT]", "answers side by side; without PROMPT to the last", Chat.compare),
    "system": Command("/system [TEXT]", "begin anew, with this system message or with none", Chat.set_system),
    "reset": Command("/reset", "forget what was said", Chat.reset),
    "temperature": Command("/temperature 0.7", "draw answers; 0 writes the likeliest", Chat.set_temperature),
    "max-new-tokens": Command("/max-new-tokens 200", "the longest answer", Chat.set_length),
    "help": Command("/help", "these commands; Ctrl-C ends an answer, Ctrl-D the program", Chat.help),
}


def read_temperature(text: str) -> float:
    """Raises ``UserError`` for a text that is no temperature."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UserError(f"temperature {text!r} must be a number from 0 to 100, such as 0.7; 0 writes the likeliest")
    return value


def footnote(answer: Answer) -> str:
    """What there is to know of an answer beside its text: its pace, and whether it was cut."""
    ended = {"stop": "", "length": f"; cut at {answer.tokens} tokens", "interrupted": "; ended by you"}[answer.finish]
    if answer.tokens is None:
        return duration(answer.seconds) + ended
    return f"{answer.tokens} tokens in {duration(answer.seconds)}{ended}"
