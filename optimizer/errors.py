"""Everything mergefront raises on purpose.

    MergefrontError
    ├── UserError              the user's input is wrong (exit code 2)
    │   └── StudyFileError     a study file, with every problem found in it
    └── SearchStoppedError     the search cannot go on (exit code 1); what finished is kept
        └── StorageError       its database cannot be used: no candidate is at fault
    EvaluationError            one candidate could not be scored: a failed trial, the search goes on

The command line prints a ``MergefrontError`` as one message and never as a traceback.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches


class MergefrontError(Exception):
    """Base of every error that mergefront raises on purpose."""

    exit_code = 1


class UserError(MergefrontError):
    """The input is wrong; the message names the thing, the value and the remedy."""

    exit_code = 2


class StudyFileError(UserError):
    """A study file with one or more problems, each a line of its own."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {line}" for line in self.problems)]))


class SearchStoppedError(MergefrontError):
    """The search stopped before its budget was spent; finished evaluations are in the database."""


class StorageError(SearchStoppedError):
    """The database cannot be used now: away, full, read-only, locked."""


REFUSED = "refused"
"""The kind of an ``EvaluationError`` that is the recipe's own: a row of them does not stop a search."""


class EvaluationError(MergefrontError):
    """A candidate could not be scored; ``kind`` groups failures that have the same cause."""

    def __init__(self, message: str, *, kind: str = "evaluation") -> None:
        super().__init__(message)
        self.kind = kind


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A hint such as ``(did you mean 'density'?)``, or the known words when nothing is near.

    Keys of YAML and JSON are no words where they are numbers, so ``word`` may be anything.
    """
    known = sorted(known)
    near = get_close_matches(str(word), known, n=1, cutoff=0.6)
    if near:
        return f"(did you mean {near[0]!r}?)"
    return f"(known: {', '.join(known)})"


def unsupported_keys(given: Iterable[object], known: Collection[str]) -> list[str]:
    """A line for each key that is ``given`` and not ``known``."""
    return [f"the key {key!r} is not supported {did_you_mean(key, known)}" for key in given if key not in known]
