"""Commands for llama.cpp: gguf, llama-server."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from mergefront.cli.boundary import terminable
from mergefront.cli.logs import echo
from mergefront.optimizer.errors import UserError


@click.command(short_help="Write checkpoints and PEFT LoRAs as GGUF files for llama.cpp.")
@click.argument("models", nargs=-1, required=True)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--base",
    metavar="MODEL",
    help="The LoRAs' base, of which only config.json is read. Default: the checkpoint among MODELS, or what they name.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.gguf",
    help="Where a checkpoint's tokenizer is taken from: a GGUF file of the same vocabulary.",
)
@click.option(
    "--dtype", type=click.Choice(["f16", "f32"]), default="f16", show_default=True, help="What weights are kept in."
)
@click.option(
    "--density",
    "densities",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    help="Also write each LoRA with that share of A's entries, the largest, as NAME@DENSITY.gguf. Repeatable.",
)
def gguf(
    models: tuple[str, ...],
    output: Path,
    base: str | None,
    tokenizer: Path | None,
    dtype: Any,
    densities: tuple[float, ...],
) -> None:
    """Write each of MODELS, checkpoints or PEFT LoRAs, as a GGUF file into the folder OUTPUT. Models are folders, or
    names on the Hub.

    Of one model, OUTPUT may be the file, which ends in .gguf. A LoRA means in llama.cpp exactly what it means in PEFT:
    its scale there is its weight in a recipe. Architectures: llama, mistral, qwen2, qwen3; llama.cpp's own converters
    write the others.

    \b
    Examples:
      mergefront gguf loras/maths loras/french gguf --base models/base
      mergefront gguf merged merged.gguf --tokenizer base-Q4_K_M.gguf
      mergefront gguf loras/* gguf --base models/base --density 0.25 --density 0.5
    """
    from mergefront.adapters.gguf.conversion import plan_files
    from mergefront.adapters.gguf.file import write_gguf

    plans = plan_files(models, output, base=base, tokenizer_from=tokenizer, dtype=dtype, densities=densities)
    for out, plan in plans.items():
        out.parent.mkdir(parents=True, exist_ok=True)
        echo(str(write_gguf(plan, out)))


@click.command("llama-server", short_help="Serve a GGUF model and its LoRAs with llama.cpp, to search their scales.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("loras", nargs=-1, type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any free port.")
@click.option("--slots", type=click.IntRange(1, 256), default=2, show_default=True, help="Requests at once.")
@click.option("--context", type=click.IntRange(min=8), default=1024, show_default=True, help="Tokens of each request.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="More than one only on a quiet machine: they wait for each other.",
)
@click.option("--exact", is_flag=True, help="Float32 KV cache, no flash attention: log-probabilities to 2e-4.")
def llama_server(
    model: Path, loras: tuple[Path, ...], port: int, slots: int, context: int, threads: int, exact: bool
) -> None:
    """Start llama.cpp's server on MODEL with the GGUF files LORAS, on this machine only, until Ctrl-C.

    Every LoRA starts at scale 0 and no prompt is kept between requests, which is what makes scores of scales exact.
    Prints the lines of a study file that search the scales; needs the extra: pip install "mergefront[llama-cpp]".

    \b
    Example:
      mergefront llama-server gguf/base.gguf gguf/maths.gguf gguf/french.gguf --port 8190
    """
    from mergefront.adapters.remote.llama_server.local_server import ServerOptions, own_build, start, study_lines

    twice = [name for name, count in Counter(path.stem for path in loras).items() if count > 1]
    if twice:
        raise UserError(f"several LoRAs are called {twice[0]}; a study could not tell them apart")
    options = ServerOptions(slots=slots, threads=threads, context=context, exact=exact)
    with terminable(), suppress(KeyboardInterrupt):
        server, url = start(model, loras, options, port)
        echo(study_lines(url, model, loras, options))
        echo(f"llama.cpp serves {model} with {len(loras)} LoRAs at {url} (Ctrl-C ends).", err=True)
        echo(f"The same by a build of yours:\n  {own_build(model, loras, options, port)}", err=True)
        while server is not None:
            time.sleep(3600)
    echo("The server has ended.", err=True)
