"""The fused merge kernel, compiled once by the machine's own C compiler and kept in the user's cache folder.

Compiling takes two seconds, at the first merge on a machine. The library is found again by a hash of the source, the
compiler and the processor. Without a compiler torch's operations merge instead, with the same result.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_LOG = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("fused_merge.c")
_OPTIONS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_FOR_THIS_PROCESSOR = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
_SECONDS = 120

SharedWork = Callable[[int, int], int]
"""A function of fused_merge.c that several threads call at once: addresses of its structure and of their counter."""


class MergeKernel(NamedTuple):
    """The functions of fused_merge.c."""

    merge_pieces: SharedWork
    settle_tensors: SharedWork
    count_entries: SharedWork
    measure_pieces: SharedWork
    expand_factors: SharedWork


@functools.lru_cache(maxsize=1)
def load_kernel() -> MergeKernel | None:
    """The compiled kernel, or None (with a warning in the log) where it cannot be had."""
    compiler = _compiler()
    if compiler is None:
        _LOG.warning("no C compiler was found ($CC, gcc, cc or clang): merging is slower, with the same result")
        return None
    try:
        folder = _cache_folder()
        if folder is not None:
            library = ctypes.CDLL(str(_compiled(compiler, folder)))
        else:
            with tempfile.TemporaryDirectory(prefix="mergefront-") as temporary:
                library = ctypes.CDLL(str(_compiled(compiler, Path(temporary))))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        _LOG.warning("the merge kernel could not be compiled, merging is slower, with the same result: %s", detail)
        return None
    functions = [getattr(library, name) for name in MergeKernel._fields]
    for function in functions:
        function.restype = ctypes.c_int
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return MergeKernel(*functions)


def _compiler() -> tuple[str, ...] | None:
    """The C compiler's command: $CC, with its options, or the first that is found."""
    commands = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else [["gcc"], ["cc"], ["clang"]]
    return next((tuple(command) for command in commands if command and shutil.which(command[0])), None)


def _compiled(compiler: tuple[str, ...], folder: Path) -> Path:
    """The library's path; compiled now if nobody did before. Raises ``OSError`` or ``SubprocessError``."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_SECONDS, check=True).stdout
    source = _SOURCE.read_bytes()
    parts = (source, repr((compiler, _OPTIONS, _FOR_THIS_PROCESSOR)).encode(), version, _processor())
    name = f"merge-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:20]}.so"
    if (folder / name).exists():
        return folder / name
    # Written beside its place and moved there: another process never sees a part of it.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / name
        for number, options in enumerate(_FOR_THIS_PROCESSOR, 1):
            try:
                subprocess.run(
                    [*compiler, *_OPTIONS, *options, "-o", str(made), str(_SOURCE), "-lm"],
                    capture_output=True,
                    text=True,
                    timeout=_SECONDS,
                    check=True,
                )
                break
            except subprocess.CalledProcessError:
                if number == len(_FOR_THIS_PROCESSOR):
                    raise
        made.replace(folder / name)
    return folder / name


def _processor() -> bytes:
    """What a library compiled for this processor depends on: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"|".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))


def _cache_folder() -> Path | None:
    """A folder that only this user can write to, or None where the home folder does not serve."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(home) / "mergefront"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    foreign = hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022)
    return folder if not foreign and os.access(folder, os.W_OK) else None
