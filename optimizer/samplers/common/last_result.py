"""The last result of something slow, kept by the content that it was computed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class LastResult(Generic[Result]):
    """Computes again only when the content has changed; without the memory the result would be the same."""

    def __init__(self) -> None:
        self._kept: tuple[object, Result] | None = None

    def of(self, content: object, compute: Callable[[], Result]) -> Result:
        """What ``compute`` makes of ``content``, which is compared by equality."""
        if self._kept is None or self._kept[0] != content:
            self._kept = (content, compute())
        return self._kept[1]
