"""A conversation on a terminal, or line by line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from mergefront.cli.logs import echo
from mergefront.optimizer.errors import MergefrontError
from mergefront.optimizer.foreign_text import visible

if TYPE_CHECKING:
    from mergefront.chat.generation import Answer
    from mergefront.chat.session import Ask, Chat

_NARROWEST = 34
"""Columns that an answer needs beside others (chosen by hand)."""


class Screen:
    """Answers on stdout, everything else on stderr; on a terminal side by side where there is room."""

    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def note(self, line: str) -> None:
        echo(line, err=True)

    def answer(self, ask: Ask) -> Answer:
        from mergefront.chat.session import footnote

        found = ask(_show)
        echo()
        if self._is_terminal and found.finish != "stop":
            self.note(f"({footnote(found)})")
        return found

    def side_by_side(self, asked: Sequence[tuple[str, Ask]]) -> None:
        from mergefront.formatting import console

        width = console().width
        if self._is_terminal and len(asked) > 1 and width >= _NARROWEST * len(asked):
            self._in_columns(asked)
            return
        for label, ask in asked:
            echo(f"--- {label}")
            if self.answer(ask).finish == "interrupted":
                return

    def _in_columns(self, asked: Sequence[tuple[str, Ask]]) -> None:
        """Every column grows as its answer is written, one answer after the other."""
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        from mergefront.chat.session import footnote
        from mergefront.formatting import console

        written = [""] * len(asked)

        def table() -> Table:
            made = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False)
            for label, _ in asked:
                made.add_column(visible(label), ratio=1, overflow="fold", header_style="bold")
            made.add_row(*(Text(visible(text)) for text in written))
            return made

        with Live(get_renderable=table, console=console(), refresh_per_second=8):
            for index, (_, ask) in enumerate(asked):

                def show(piece: str, index: int = index) -> None:
                    written[index] += piece

                found = ask(show)
                written[index] += f"\n({footnote(found)})" if found.finish != "stop" else ""
                if found.finish == "interrupted":
                    return


def _show(piece: str) -> None:
    echo(piece, nl=False)
    sys.stdout.flush()


def converse(chat: Chat, is_terminal: bool) -> None:
    """Answer line after line until the input ends.

    On a terminal what cannot be done is said and the next line read. A script is told by the exit code: what a line of
    a pipe raises, a ``MergefrontError``, goes on.
    """
    if not is_terminal:
        for line in sys.stdin:
            chat.take(line)
        return
    for line in _typed(lambda: f"{chat.current.label}> "):
        try:
            chat.take(line)
        except KeyboardInterrupt:  # while a merge is made or a server answers
            echo("(stopped)", err=True)
        except MergefrontError as error:
            echo(str(error), err=True)


def _typed(prompt: Callable[[], str]) -> Iterator[str]:
    """Lines as they are typed, until Ctrl-D; Ctrl-C drops the line."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (gives input() its arrow keys)
    while True:
        try:
            yield input(visible(prompt()))
        except KeyboardInterrupt:
            echo(" (Ctrl-D leaves)", err=True)
        except EOFError:
            echo()
            return
