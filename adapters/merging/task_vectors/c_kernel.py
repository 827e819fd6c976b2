"""The fused merge kernel, fused_merge.c, which is compiled when mergefront is installed (``ext-modules`` in
pyproject.toml). Where no compiler was then, torch's operations merge instead, with the same result."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

WITHOUT_KERNEL = (
    "mergefront was installed without a C compiler: merging on a CPU is slower, with the same result; install gcc, "
    "then mergefront again (pip install --force-reinstall --no-deps)"
)
_LOG = logging.getLogger(__name__)

SharedWork = Callable[[int, int], int]
"""A function of fused_merge.c that several threads call at once: addresses of its structure and of their counter."""


class MergeKernel(NamedTuple):
    """The functions of fused_merge.c."""

    merge_pieces: SharedWork
    settle_tensors: SharedWork
    count_entries: SharedWork
    measure_pieces: SharedWork
    expand_factors: SharedWork


def library() -> str | None:
    """The path of the compiled kernel, or None where mergefront was installed without a C compiler."""
    # A plain shared library that setuptools builds, and Python finds, as it does extension modules.
    found = find_spec(f"{__package__}.fused_merge")
    return None if found is None else found.origin


@functools.lru_cache(maxsize=1)
def load_kernel() -> MergeKernel | None:
    """The compiled kernel, or None (with a warning in the log) where it cannot be had."""
    path = library()
    if path is None:
        _LOG.warning(WITHOUT_KERNEL)
        return None
    try:
        loaded = ctypes.CDLL(path)
    except OSError as error:
        _LOG.warning("the merge kernel cannot be loaded, merging is slower, with the same result: %s", error)
        return None
    functions = [getattr(loaded, name) for name in MergeKernel._fields]
    for function in functions:
        function.restype = ctypes.c_int
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return MergeKernel(*functions)
