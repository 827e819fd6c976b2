"""Double buffering: what comes next is fetched by a thread while the caller works on what came before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

Wanted = TypeVar("Wanted")
Fetched = TypeVar("Fetched")
_PAGE = 4096


def prefetched(wanted: Sequence[Wanted], fetch: Callable[[Wanted], Fetched]) -> Iterator[tuple[Wanted, Fetched]]:
    """Each of ``wanted`` with what was fetched for it, in order; one is fetched ahead, in a thread.

    What ``fetch`` raises is raised when its turn comes.
    """
    if len(wanted) < 2:
        yield from ((one, fetch(one)) for one in wanted)
        return
    with ThreadPoolExecutor(1, "mergefront-prefetch") as thread:
        ahead = thread.submit(fetch, wanted[0])
        for place, one in enumerate(wanted):
            fetched = ahead.result()
            if place + 1 < len(wanted):
                ahead = thread.submit(fetch, wanted[place + 1])
            yield one, fetched
            del fetched


@contextmanager
def own_streams(devices: Iterable[torch.device]) -> Iterator[None]:
    """What the block does on GPUs runs beside what other threads do there, and is done when the block ends."""
    streams = [torch.cuda.Stream(device) for device in set(devices) if device.type == "cuda"]  # type: ignore[no-untyped-call]
    with ExitStack() as entered:
        for stream in streams:
            entered.enter_context(torch.cuda.stream(stream))
        yield
    for stream in streams:
        stream.synchronize()


def read_pages(tensor: torch.Tensor) -> None:
    """Bring the pages of a contiguous tensor in a memory-mapped file into memory, by reading a byte of each."""
    if tensor.numel():
        tensor.view(-1).view(torch.uint8)[::_PAGE].amax()
