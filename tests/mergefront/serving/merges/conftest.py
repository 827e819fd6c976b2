"""A pool on disk: a tiny base model, a whole expert and a LoRA, and ``mergefront serve`` as a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml


@dataclass
class Served:
    """A running service: its ``url`` and process; ``log`` has what it wrote."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="session")
def pool_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """``base``, ``whole`` (a checkpoint) and ``lora`` (a PEFT LoRA) of one tiny Llama."""
    pytest.importorskip("transformers")
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("pool")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        model.save_pretrained(folder / "base")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder / "whole")
        tensors = {}
        for layer in range(2):
            for module, rows in (("q_proj", 32), ("v_proj", 16)):
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                tensors[f"{name}.lora_A.weight"] = torch.randn(2, 32) * 0.3
                tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 2) * 0.3
    for name in ("base", "whole"):
        tokenizer.save_pretrained(folder / name)
        (folder / name / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}Answer:")
    (folder / "lora").mkdir()
    save_file(tensors, folder / "lora" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none"}
    settings["target_modules"] = ["q_proj", "v_proj"]
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def write_pool(folder: Path, pool_folder: Path, **more: Any) -> Path:
    """A pool file in ``folder`` with the given keys beside the usual ones."""
    models = {"whole": str(pool_folder / "whole"), "lora": str(pool_folder / "lora")}
    content = {"pool": "tiny", "base_model": str(pool_folder / "base"), "models": models, "port": 0, **more}
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def pool_file(pool_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """``write_pool`` in the test's own folder."""
    return partial(write_pool, tmp_path, pool_folder)


@pytest.fixture(scope="module")
def module_pool_file(pool_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``write_pool`` in a folder of the module's."""
    return partial(write_pool, tmp_path_factory.mktemp("service"), pool_folder)


@contextmanager
def services() -> Iterator[Callable[..., Served]]:
    """Runs ``mergefront serve`` on a pool file until it answers; all end with the block."""
    with ExitStack() as stack:

        def run(path: Path, *arguments: str, **environment: str) -> Served:
            log = path.parent / "serve.log"
            written = stack.enter_context(log.open("a"))
            process = subprocess.Popen(
                [sys.executable, "-m", "mergefront", "serve", str(path), *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stderr is not None
            stack.callback(process.wait)
            stack.callback(process.kill)
            said = []
            for line in process.stderr:
                said.append(line)
                written.write(line)
                if " is served at " in line:
                    url = line.split(" is served at ")[1].split()[0]
                    stack.enter_context(_Drain(process, log))
                    return Served(url, process, log)
            raise AssertionError(f"it did not start: {''.join(said)}")

        yield run


@pytest.fixture
def start() -> Iterator[Callable[..., Served]]:
    """Starts services that end with the test."""
    with services() as run:
        yield run


@pytest.fixture(scope="module")
def module_start() -> Iterator[Callable[..., Served]]:
    """Starts services that end with the module, for tests that leave nothing behind."""
    with services() as run:
        yield run


class _Drain:
    """Keeps what a process goes on to write, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        import threading

        self._thread = threading.Thread(target=self._read, args=(process, log), daemon=True)

    @staticmethod
    def _read(process: subprocess.Popen[str], log: Path) -> None:
        assert process.stderr is not None
        with log.open("a") as written:
            for line in process.stderr:
                written.write(line)
                written.flush()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        return None
