"""A vLLM server that this process starts on this machine, from an environment of its own, and ends."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergefront.adapters.remote.settings import MERGE_WORKER
from mergefront.adapters.remote.vllm import launcher
from mergefront.adapters.remote.vllm.wire import refuse_old
from mergefront.optimizer.errors import UserError

HOST = "127.0.0.1"
MODEL = "mergefront"
"""What the server calls its model."""
_LINES = 12
_ENDING = 20.0
_ON_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2"}
"""Without them vLLM ties threads to cores that others use, and takes nine tenths of the memory for its cache (GiB)."""
_PROBE = """
import json
from importlib.metadata import PackageNotFoundError, version
def known(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass
found = known("vllm", "vllm-cpu")
if found:
    import torch
print(json.dumps({"vllm": found, "accelerator": bool(found) and torch.accelerator.is_available()}))
"""


@dataclass(frozen=True)
class VllmInstallation:
    """A Python with vLLM: its path, vLLM's version, and whether it sees an accelerator."""

    python: str
    version: str
    has_accelerator: bool

    @classmethod
    def found(cls, python: str | None) -> VllmInstallation:
        """Ask a Python (None: this one) what it has, in a few seconds. Raises ``UserError`` without a usable vLLM."""
        path = python or sys.executable
        where = f"backend.vllm.python {path}" if python else "backend.vllm.python: this Python"
        try:
            ran = subprocess.run([path, "-c", _PROBE], capture_output=True, text=True, timeout=300)
            known = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else None
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            raise UserError(f"{where} cannot be run ({error!s:.200}); name the python of vLLM's environment") from None
        if known is None or known["vllm"] is None:
            why = "has no vLLM" if known else f"has no usable torch ({ran.stderr.strip()[-200:]})"
            raise UserError(f"{where} {why}; name the python of an environment in which vLLM is installed")
        refuse_old(known["vllm"], f"python {path} has")
        return cls(path, known["vllm"], bool(known["accelerator"]))


class VllmProcess:
    """A server of the model in ``folder`` with ``MergeWorker``, at ``url``; ended with ``close``.

    It listens on loopback only, since its development routes are open to whoever reaches the port. It imports this very
    code. ``arguments`` are added to its command. Raises ``UserError`` with its last words when it does not start within
    ``seconds``.
    """

    def __init__(
        self, installation: VllmInstallation, folder: Path, dtype: str, arguments: Sequence[str], seconds: float
    ) -> None:
        self._work = Path(tempfile.mkdtemp(prefix="mergefront-vllm-"))
        _link_code(self._work / "code")
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        self.url = f"http://{HOST}:{port}"
        self._command = [
            *(installation.python, launcher.__file__, "--host", HOST, "--port", str(port)),
            *("--model", str(folder), "--served-model-name", MODEL, "--dtype", dtype),
            *("--generation-config", "vllm", "--worker-extension-cls", MERGE_WORKER),
            *(() if installation.has_accelerator else ("--enforce-eager",)),
            *arguments,
        ]
        self._seconds = seconds
        self._on_cpu = not installation.has_accelerator
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start the server and wait for it; again, where it ended."""
        self._end()
        with (self._work / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._work,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(self._work / "code", self._on_cpu),
                start_new_session=True,
            )
        until = time.monotonic() + self._seconds
        while not self._answers():
            if self.has_ended or time.monotonic() > until:
                what = "ended" if self.has_ended else f"did not answer within {self._seconds:g} seconds"
                raise UserError(f"vLLM {what} as it started:\n{self.last_words()}")
            time.sleep(0.5)

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process is None or self._process.poll() is not None

    @property
    def process_id(self) -> int:
        """Of the server's first process."""
        assert self._process is not None
        return self._process.pid

    def last_words(self) -> str:
        """The end of what the server wrote, those lines first that name an error."""
        text = (self._work / "server.log").read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"\w*Error\b.*:", line)]
        return "\n".join(f"  {line[-300:]}" for line in (errors or lines)[-_LINES:])

    def close(self) -> None:
        self._end()
        shutil.rmtree(self._work, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # Its engine and workers are processes of the same group.
        for number, patience in ((signal.SIGTERM, _ENDING), (signal.SIGKILL, _ENDING)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        if process.stdin is not None:
            process.stdin.close()


def _environment(code: Path, on_cpu: bool) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONSAFEPATH")}
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        **(_ON_CPU if on_cpu else {}),
    }.items():
        known.setdefault(name, value)
    return {**known, "VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(code)}


def _link_code(folder: Path) -> None:
    """Make this package importable from ``folder``, by another Python, whatever way it is installed here."""
    package = folder / "mergefront"
    package.mkdir(parents=True)
    for name in ("mergefront", "mergefront.optimizer", "mergefront.adapters", "mergefront.storage"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations is not None
        [*_, place] = spec.submodule_search_locations
        inside = name.partition(".")[2]
        if inside and not (package / inside).exists():
            (package / inside).symlink_to(place)
        for entry in () if inside else Path(place).iterdir():
            (package / entry.name).symlink_to(entry)
