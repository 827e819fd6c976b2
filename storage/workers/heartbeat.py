"""Signs of life for claims under way, from one thread that costs a short trial nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from mergefront.optimizer.errors import StorageError

_log = logging.getLogger("mergefront.storage")


class Heartbeat:
    """Calls ``beat(slot)`` every ``seconds`` for each slot between its ``add`` and its ``remove``.

    The thread starts with the first slot and ends when it wakes up to none.
    """

    def __init__(self, beat: Callable[[int], None], seconds: float) -> None:
        self._beat = beat
        self._seconds = seconds
        self._slots: set[int] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, slot: int) -> None:
        """Give signs of life for this slot from now on."""
        with self._lock:
            self._slots.add(slot)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mergefront-heartbeat", daemon=True)
                self._thread.start()

    def remove(self, slot: int) -> None:
        """No further signs of life for this slot."""
        with self._lock:
            self._slots.discard(slot)

    def _run(self) -> None:
        while True:
            time.sleep(self._seconds)
            with self._lock:
                slots = sorted(self._slots)
                if not slots:
                    self._thread = None
                    return
            for slot in slots:
                try:
                    self._beat(slot)
                except StorageError as error:  # the search itself meets the same fault and tells the user
                    _log.warning("no sign of life could be given for slot %s: %s", slot, error)
