"""llama.cpp's own HTTP server in this process, from the package ``xllamacpp`` (a prebuilt wheel).

It listens on loopback, with every LoRA at scale 0. Flags and pitfalls are measured: prompts that the server keeps were
computed under other scales, so none are kept in memory; ``--lora-init-without-apply`` leaves the scales at 1.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from mergefront.optimizer.errors import UserError

HOST = "127.0.0.1"
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class ServerOptions:
    """``slots`` requests at once, each of ``context`` tokens. ``exact`` keeps the KV cache in float32 without flash
    attention: log-probabilities to 2e-4 of transformers' with a float32 model. ``prompt_cache_mib`` is for prompts of
    finished requests, which may have been read under other scales."""

    slots: int = 2
    threads: int = 1
    context: int = 1024
    exact: bool = False
    prompt_cache_mib: int = 0


def start(model: Path, loras: Sequence[Path], options: ServerOptions, port: int) -> tuple[object, str]:
    """The server, which ends when it is deleted, and its URL; ``port`` 0 takes a free one.

    Raises ``UserError`` without ``xllamacpp``, for files that are no GGUF, and where llama.cpp refuses them.
    """
    try:
        import xllamacpp
    except ImportError:
        raise UserError('a llama.cpp server needs the extra: pip install "mergefront[llama-cpp]"') from None
    problems = [problem for file in (model, *loras) if (problem := _problem(file)) is not None]
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except OSError as error:
            problems.append(f"port {port} is taken ({error.strerror}); choose another one")
    if problems:
        raise UserError("\n".join(problems))
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = [HOST]
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
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise UserError(f"llama.cpp does not serve {model} with these LoRAs ({error}); its reason is above") from None
    return server, str(server.listening_address).rstrip("/")


def own_build(model: Path, loras: Sequence[Path], options: ServerOptions, port: int) -> str:
    """The command that starts the same with a ``llama-server`` of one's own, which may use an accelerator."""
    scaled = ",".join(f"{path}:0.0" for path in loras)
    total = str(options.context * options.slots)
    return shlex.join(
        [
            *("llama-server", "-m", str(model), "--host", HOST, "--port", str(port)),
            *("--cache-ram", str(options.prompt_cache_mib)),
            *(("--lora-scaled", scaled) if loras else ()),
            *("-np", str(options.slots), "-c", total, "-t", str(options.threads), "-tb", str(options.threads)),
            *(("-ctk", "f32", "-ctv", "f32", "-fa", "off") if options.exact else ()),
        ]
    )


def study_lines(url: str, model: Path, loras: Sequence[Path], options: ServerOptions) -> str:
    """The lines of a study file that search the scales of the server's LoRAs."""
    stems = [path.stem.partition("@") for path in loras]
    densities = sorted({float(density) for _, mark, density in stems if mark})
    merge: dict[str, object] = {
        "method": "lora_cat" if densities else "task_arithmetic",
        "base_model": model.stem,
        "models": [name for name, mark, _ in stems if not mark],
        "space": {"weight": [0, 1], **({"density": _steps([*densities, 1.0])} if densities else {})},
    }
    backend = {"type": "llama_server", "url": url, "concurrency": options.slots}
    lines = ["merge:"]
    lines += [f"  {key}: {_in_a_line(value)}" for key, value in merge.items()]
    return "\n".join([*lines, f"backend: {_in_a_line(backend)}"])


def _steps(values: Sequence[float]) -> dict[str, object]:
    """A range in steps where ascending values are as far apart each, otherwise a choice among them."""
    step = values[1] - values[0]
    even = all(abs(after - before - step) < 1e-9 for before, after in pairwise(values))
    return {"low": values[0], "high": values[-1], "step": step} if even else {"choices": list(values)}


def _in_a_line(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("\n...\n").rstrip()


def _problem(file: Path) -> str | None:
    """Why llama.cpp could not read a file, as far as its first bytes tell."""
    if file.is_dir():
        return f"{file}: a folder; make it a GGUF file first: mergefront gguf {shlex.quote(str(file))} OUTPUT"
    if not file.is_file():
        return f"{file}: there is no such file"
    with file.open("rb") as stream:
        return None if stream.read(4) == _MAGIC else f"{file}: no GGUF file"
