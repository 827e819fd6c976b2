"""llama.cpp's own HTTP server in a child process, from the package ``xllamacpp`` (a prebuilt wheel).

    with local_server(Path("base.gguf"), {"maths": Path("maths.gguf")}) as url: ...

or ``python examples/api_only/llama_cpp_setup/local_server.py base.gguf maths.gguf french.gguf --port 8080``.
The server listens on loopback, starts with every LoRA at scale 0, keeps no prompt cache in memory unless
told to, and ends with the process that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergefront.optimizer.errors import MergefrontError, UserError


@dataclass(frozen=True)
class ServerOptions:
    """``exact`` keeps the KV cache in float32 without flash attention (log-probabilities to 2e-4 of
    transformers' with a float32 model); ``prompt_cache_mib`` is llama.cpp's ``--cache-ram``; ``context`` is
    the number of tokens of each slot."""

    slots: int = 2
    threads: int = 1
    context: int = 1024
    exact: bool = False
    prompt_cache_mib: int = 0


@contextlib.contextmanager
def local_server(
    model: Path,
    loras: Mapping[str, Path],
    options: ServerOptions | None = None,
    *,
    port: int = 0,
    start_timeout: float = 120.0,
    log: Path | None = None,
) -> Iterator[str]:
    """Run a server while the block lasts; yields its URL. ``port`` 0 takes a free one.

    Raises ``UserError`` when ``xllamacpp`` or a file is missing, ``MergefrontError`` when it does not start.
    """
    options = options or ServerOptions()
    for file in (model, *loras.values()):
        if not file.is_file():
            raise UserError(f"{file}: there is no such file")
    command = [
        sys.executable,
        __file__,
        str(model),
        *(str(path) for path in loras.values()),
        *("--port", str(port), "--slots", str(options.slots), "--threads", str(options.threads)),
        *("--context", str(options.context), "--cache-ram", str(options.prompt_cache_mib), "--end-with-stdin"),
        *(["--exact"] if options.exact else []),
    ]
    with contextlib.ExitStack() as stack:
        errors = subprocess.DEVNULL if log is None else stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        try:
            yield _address(process, start_timeout, log)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def _address(process: subprocess.Popen[bytes], timeout: float, log: Path | None) -> str:
    """The URL, which the child prints as its own first line ``mergefront-server URL``."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    received = b""
    while time.monotonic() < deadline:
        ready, _, _ = select.select([process.stdout], [], [], 0.2)
        if ready:
            part = os.read(process.stdout.fileno(), 65536)
            received += part
            for line in received.split(b"\n")[:-1]:
                if line.startswith(b"mergefront-server "):
                    return line.split()[1].decode()
            if not part:
                break
        elif process.poll() is not None:
            break
    hint = f"; its log is {log}" if log is not None else ""
    raise MergefrontError(f"llama.cpp's server did not start (exit status {process.poll()}){hint}")


def serve(model: Path, loras: list[Path], options: ServerOptions, port: int) -> tuple[object, str]:
    """Start the server in this process; returns it (it stops when deleted) and its URL."""
    try:
        import xllamacpp
    except ModuleNotFoundError:
        raise UserError("llama.cpp's server is missing; install it: pip install xllamacpp") from None
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = options.slots
    params.n_ctx = options.context * options.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_threads_http = max(4, options.slots + 2)
    params.cache_ram_mib = options.prompt_cache_mib
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in loras]
    params.warmup = False
    params.n_gpu_layers = 0
    params.verbosity = 1
    if options.exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    return server, str(server.listening_address).rstrip("/")


def main() -> None:
    parser = argparse.ArgumentParser(description="llama.cpp's server with LoRAs at scale 0, on loopback.")
    parser.add_argument("model", type=Path)
    parser.add_argument("loras", type=Path, nargs="*")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--cache-ram", type=int, default=0, help="MiB of prompts kept between requests (0: none)")
    parser.add_argument("--exact", action="store_true", help="float32 KV cache, no flash attention")
    parser.add_argument("--end-with-stdin", action="store_true", help="stop when standard input is closed")
    given = parser.parse_args()
    options = ServerOptions(given.slots, given.threads, given.context, given.exact, given.cache_ram)
    server, url = serve(given.model, given.loras, options, given.port)
    print(f"mergefront-server {url}", flush=True)
    if given.end_with_stdin:
        sys.stdin.buffer.read()
    else:
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    del server


if __name__ == "__main__":
    main()
