"""Files of a stranger's model and study, each kind broken in each way: a message and exit code 2, or sound; never
"unexpected", never a hang, and what check calls sound runs."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.numpy import save_file

from mergefront.cli.application import cli
from mergefront.optimizer.errors import UserError
from mergefront.storage.database import Database

sys.path.insert(0, str(Path(__file__).parent))
from malformed import STUDY, write_good

TEXTS: dict[str, bytes] = {
    "no JSON": b"{", "a list": b"[]", "null": b"null", "not UTF-8": b"\xff\xfe", "deep": b"[" * 50_000,
    "digits": b"9" * 5000, "a word of 200 kB": b'{"x": "' + b"y" * 200_000 + b'"}', "terminal": b'{"\x1b]0;x\x07": 1}',
}  # fmt: skip
FILES = (
    "base/config.json", "base/tokenizer.json", "base/tokenizer_config.json", "base/special_tokens_map.json",
    "base/generation_config.json", "base/processor_config.json", "base/preprocessor_config.json", "base/modules.json",
    "base/added_tokens.json", "base/vocab.json", "base/chat_template.jinja", "maths/config.json",
    "maths/tokenizer.json", "maths/model.safetensors.index.json", "lora/adapter_config.json",
)  # fmt: skip
VALUES: dict[str, tuple[tuple[str, Any], ...]] = {
    "base/config.json": (
        ("architectures", {"x": 1}), ("architectures", "x"), ("architectures", [[]]), ("model_type", []),
        ("rope_scaling", [1, 1, 1]), ("rope_parameters", "x"), ("auto_map", []), ("text_config", [1]),
        ("num_hidden_layers", 10**9), ("num_hidden_layers", "x"), ("num_labels", 10**13), ("vocab_size", 1e400),
        ("eos_token_id", {}), ("tie_word_embeddings", "x"), ("hidden_size", -1), ("num_attention_heads", 0),
    ),
    "maths/config.json": (("rope_scaling", [1, 1, 1]), ("architectures", [None]), ("num_hidden_layers", {})),
    "base/generation_config.json": (
        ("eos_token_id", [{}]), ("pad_token_id", "x"), ("pad_token_id", []), ("suppress_tokens", 3),
        ("suppress_tokens", [{}]), ("temperature", "x"), ("max_length", []),
    ),
    "base/tokenizer.json": (
        ("normalizer", {"x": 1}), ("pre_tokenizer", "x"), ("version", -1), ("post_processor", 3.5), ("model", {}),
        ("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "x"}), ("added_tokens", [{"id": "x"}]),
    ),
    "base/tokenizer_config.json": (
        ("auto_map", {"AutoTokenizer": []}), ("auto_map", {"AutoTokenizer": ""}), ("tokenizer_class", 3),
        ("added_tokens_decoder", {"0": 1}), ("model_max_length", "x"), ("chat_template", {"a": 1}),
    ),
    "lora/adapter_config.json": (
        ("r", 0), ("r", 1e400), ("r", {}), ("lora_alpha", "x"), ("lora_alpha", None), ("rank_pattern", [1]),
        ("rank_pattern", {"(a+)+b": 2}), ("alpha_pattern", {"q_proj": []}), ("peft_type", []), ("use_dora", "x"),
        ("init_lora_weights", {}), ("target_parameters", "x"),
    ),
}  # fmt: skip


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two whole models and a LoRA that passes its check."""
    write_good(tmp_path)
    monkeypatch.chdir(tmp_path)
    lora = Path("models/lora")
    lora.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{name}A.weight": np.zeros((2, 4), np.float32), f"{name}B.weight": np.zeros((4, 2), np.float32)}
    save_file(factors, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    merge = {**STUDY["merge"], "models": {**STUDY["merge"]["models"], "lora": "models/lora"}}
    search = {"sampler": "random", "evaluations": 1}
    Path("study.yaml").write_text(yaml.safe_dump({**STUDY, "merge": merge, "search": search}))
    entries = [{"model": model, "parameters": {"weight": 0.5}} for model in ("models/maths", "models/base+models/lora")]
    config = {"merge_method": "task_arithmetic", "base_model": "models/base", "models": entries}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def broken() -> Iterator[tuple[str, str, bytes]]:
    for file in FILES:
        for kind, text in TEXTS.items():
            yield f"{file}: {kind}", file, text
    for file, pairs in VALUES.items():
        for key, value in pairs:
            yield f"{file}: {key}={value!r:.30}", file, json.dumps({key: value}).encode()


@pytest.mark.long
def test_what_stands_in_a_models_files_is_refused_in_a_message(folder: Path) -> None:
    sound = call("check", "study.yaml")
    assert sound.exit_code == 0, sound.output
    refused = 0
    for name, file, text in broken():
        path = folder / "models" / file
        before = path.read_bytes() if path.exists() else None
        known = json.loads(before) if before is not None and file.endswith(".json") else {}
        changed = text if file not in VALUES or not text.startswith(b'{"') else None
        path.write_bytes(changed or json.dumps({**known, **json.loads(text)}).encode() if is_object(text) else text)
        commands = [("check", "study.yaml"), ("merge", "config.yaml", "out")]
        checked = call(*commands[0])
        if checked.exit_code == 0 and file in VALUES:
            commands.append(("run", "study.yaml"))
        for result, command in [(checked, commands[0]), *((call(*command), command) for command in commands[1:])]:
            told = f"{name}: {command} -> {result.exit_code}\n{result.stderr[-1000:]}"
            assert "Error: unexpected " not in result.stderr and "\x1b" not in result.output, told
            assert result.exit_code == 0 or (result.exit_code == 2 and result.stderr.strip()), told
            assert result.exit_code == 0 or command[0] != "run", f"check called it sound, {told}"
        refused += checked.exit_code == 2
        path.unlink()
        if before is not None:
            path.write_bytes(before)
        for left in (*folder.glob("skills.db*"), *sorted(folder.glob("out/*"))):
            left.unlink()
        if (folder / "out").exists():
            (folder / "out").rmdir()
    assert refused > 80


def is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def fifo(file: str) -> Callable[[], None]:
    def make() -> None:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).unlink(missing_ok=True)
        os.mkfifo(file)

    return make


def link(file: str, target: str) -> Callable[[], None]:
    def make() -> None:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).unlink(missing_ok=True)
        Path(file).symlink_to(target)

    return make


SPECIAL: dict[str, tuple[Callable[[], None], dict[str, Any]]] = {
    "weights": (fifo("models/base/model.safetensors"), {}),
    "a LoRA's weights": (fifo("models/lora/adapter_model.safetensors"), {}),
    "a LoRA's configuration": (link("models/lora/adapter_config.json", "/dev/zero"), {}),
    "a template": (fifo("models/base/chat_templates/x.jinja"), {}),
    "somebody's file": (link("models/base/tokenizer.model", "/etc/passwd"), {}),
    "a circle": (link("models/base/vocab.json", "vocab.json"), {}),
    "data": (link("data/maths.jsonl", "/dev/zero"), {}),
    "a method file": (link("own.py", "/dev/zero"), {"merge": {**STUDY["merge"], "method_files": ["own.py"]}}),
    "a recipe": (fifo("w.yaml"), {"warm_start": ["w.yaml"]}),
    "a harness task": (fifo("t.yaml"), {"tasks": {**STUDY["tasks"], "maths": {"type": "lm_eval", "task": "t.yaml"}}}),
    "a database": (fifo("skills.db"), {}),
    "the study file": (link("study.yaml", "/dev/zero"), {}),
}


class WaitedError(BaseException):
    """Nothing that catches errors catches it."""


@contextmanager
def bounded(seconds: int, more_bytes: int) -> Iterator[None]:
    """Ends what opens a pipe or reads a device without end."""

    def end(_number: int, _frame: Any) -> None:
        raise WaitedError

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, limits[1]))
    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_devices_pipes_and_links_out_of_a_models_folder_are_refused_unopened(folder: Path) -> None:
    good = Path("study.yaml").read_text()
    for name, (make, changes) in SPECIAL.items():
        if changes:
            Path("study.yaml").write_text(yaml.safe_dump({**yaml.safe_load(good), **changes}))
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        make()
        with bounded(seconds=120, more_bytes=4 << 30):
            checked = call("check", "study.yaml")
        assert checked.exit_code == 2 and "unexpected" not in checked.stderr, f"{name}: {checked.stderr[-600:]}"
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or path.is_fifo():
                path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
        Path("study.yaml").write_text(good)


@pytest.mark.parametrize(
    "url",
    [
        "", "://", "sqlite://", "sqlite:///\0", "sqlite:///" + "a" * 5000, "sqlite:///\ud800", "sqlite:////dev/zero",
        "sqlite:////", "http://[", "postgresql+psycopg://u:p@[::1/db", "postgresql+psycopg://h:port/db",
        "mysql+pymysql://localhost:1/db?charset=\x1b", "oracle://x", "a" * 5000, "\x1b[31m",
    ],
)  # fmt: skip
def test_addresses_of_databases_that_are_none_are_input_errors(url: str) -> None:
    with pytest.raises(UserError) as caught:
        Database(url, create=False)
    assert len(str(caught.value)) < 6000
