"""llama.cpp's server, the real one, in a process of its own, which ends with the process that started it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROGRAM = """
import json, sys
from pathlib import Path
from mergefront.adapters.remote.llama_server.local_server import ServerOptions, start
model, loras, options = json.loads(sys.argv[1])
server, url = start(Path(model), [Path(lora) for lora in loras], ServerOptions(**options), 0)
print(url, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_cpp_server(model: Path, loras: Sequence[Path], **options: Any) -> Iterator[str]:
    """Runs a server while the block lasts; yields its URL. ``options`` are those of ``ServerOptions``."""
    given = json.dumps([str(model), [str(lora) for lora in loras], options])
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url, "llama.cpp's server did not start; see its stderr"
        yield url
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)
