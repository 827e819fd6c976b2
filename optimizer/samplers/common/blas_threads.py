"""Linear algebra on one thread.

A proposal makes thousands of products of small matrices. On several threads each of them waits for its slowest thread,
and on a machine that is busy with evaluations that is most of the time: 3.6 s against 0.3 s per proposal was measured
with two threads on two busy cores. One thread also makes proposals independent of the number of cores, because sums
are then added in one order.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from threadpoolctl import ThreadpoolController


@functools.cache
def _controller() -> ThreadpoolController:
    # Finding the libraries takes milliseconds; by the first proposal numpy's and scipy's are loaded.
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[Any]:
    """While entered, BLAS calls of the process use one thread."""
    limit: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limit
