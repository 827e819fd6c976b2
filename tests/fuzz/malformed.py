"""Malformed inputs: hand-picked ones, and those that are made from good ones by breaking a part at a time."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tokenizer_json import of_words

STUDY: dict[str, Any] = {
    "study": "skills",
    "storage": "sqlite:///skills.db",
    "seed": 1,
    "merge": {
        "method": "ties",
        "base_model": "models/base",
        "models": {"maths": "models/maths", "french": "models/french"},
        "space": {"weight": [0, 1], "density": [0.1, 1]},
    },
    "backend": {"type": "local", "device": "cpu"},
    "tasks": {
        "maths": {"type": "jsonl", "path": "data/maths.jsonl", "metric": "exact_match"},
        "french": {"type": "jsonl", "path": "data/french.jsonl", "metric": "loss"},
    },
    "objectives": ["maths", "french", "delta_l1"],
    "search": {"sampler": "mm-mo", "evaluations": 10},
}
CONFIG: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "models/base",
    "dtype": "float32",
    "models": [
        {"model": "models/maths", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": "models/french", "parameters": {"weight": 0.3, "density": 0.5}},
    ],
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "vocab_size": 8,
    "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 1, "num_key_value_heads": 1,
}  # fmt: skip
LAYER: dict[str, tuple[int, ...]] = {
    **{f"self_attn.{kind}_proj.weight": (4, 4) for kind in "qkvo"},
    **{"mlp.gate_proj.weight": (6, 4), "mlp.up_proj.weight": (6, 4), "mlp.down_proj.weight": (4, 6)},
    **{"input_layernorm.weight": (4,), "post_attention_layernorm.weight": (4,)},
}
TENSORS: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (8, 4),
    **{f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in LAYER.items()},
    "model.norm.weight": (4,),
    "lm_head.weight": (8, 4),
}
WRONG_VALUES: tuple[Any, ...] = (
    None,
    -1,
    float("inf"),
    float("nan"),
    2**70,
    "",
    "x" * 5000,
    "../../../etc/passwd",
    "~nobody-of-this-name/x",
    "nul\0inside",
    "'; DROP TABLE trials; --",
    [],
    [[]],
    {},
    {"unknown": 1},
    True,
)


def write_good(folder: Path) -> None:
    """A study that passes its check, with everything that it names."""
    for name in ("base", "maths", "french"):
        model = folder / "models" / name
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(safetensors(good_header()))
        (model / "config.json").write_text(json.dumps(CONFIG))
        (model / "tokenizer.json").write_text(of_words({"a": 0, "b": 1}))
    (folder / "data").mkdir()
    for name in ("maths", "french"):
        (folder / "data" / f"{name}.jsonl").write_text(good_lines(name))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))


def good_lines(name: str) -> str:
    return "".join(json.dumps({"prompt": f"{name} {number} =", "answer": str(number)}) + "\n" for number in range(10))


def good_header() -> dict[str, Any]:
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in TENSORS.items():
        size = 4 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    return header


def safetensors(header: Any, length: int | None = None, data: bytes | None = None) -> bytes:
    """A safetensors file with this header; ``length`` is what it claims the header's length to be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = bytes(sum(4 * shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in TENSORS.values()))
    return struct.pack("<Q", len(text) if length is None else length) + text + (body if data is None else data)


@dataclass(frozen=True)
class Case:
    """What is broken, and how to break it in a folder that ``write_good`` made."""

    name: str
    break_it: Callable[[Path], None]
    certainly_wrong: bool = True


def _file(path: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_bytes(content) and None


def broken_mappings(
    good: dict[str, Any], values: tuple[Any, ...] = WRONG_VALUES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """``good`` with each part in turn replaced, removed or joined by an unknown key."""
    for path in _paths(good):
        shown = ".".join(str(part) for part in path)
        for value in values:
            changed = copy.deepcopy(good)
            _parent(changed, path)[path[-1]] = value
            yield f"{shown}={str(value)[:20]!r}", changed
        changed = copy.deepcopy(good)
        del _parent(changed, path)[path[-1]]
        yield f"without {shown}", changed
        target = _parent(copy.deepcopy(good), path)
        if isinstance(target, dict):
            changed = copy.deepcopy(good)
            _parent(changed, path)[f"{path[-1]}x"] = 1
            yield f"{shown}x", changed


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield (*before, key)
        yield from _paths(inner, (*before, key))


def _parent(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path[:-1]:
        value = value[part]
    return value


def study_cases() -> list[Case]:
    """Study files: the good one broken everywhere, and texts that are no study file at all."""
    made = [
        Case(name, _file("study.yaml", yaml.safe_dump(content).encode()), certainly_wrong=False)
        for name, content in broken_mappings(STUDY)
    ]
    bomb = "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*{'a' if n == 0 else f'b{n - 1}'}, *a]\n" for n in range(30))
    texts: dict[str, bytes] = {
        "empty": b"",
        "a list": b"- study: x\n",
        "a word": b"study\n",
        "a YAML bomb": bomb.encode(),
        "a self-reference": b"study: &x [*x]\n",
        "a merge key": b"base: &b {study: x}\n<<: *b\n",
        "a python object": b"study: !!python/object/apply:os.system ['touch owned']\n",
        "a python name": b"study: !!python/name:os.system\n",
        "an unknown tag": b"study: !secret x\n",
        "duplicate keys": b"study: a\nstudy: b\n",
        "nested deeply": b"[" * 5000,
        "nested mappings": b"{a: " * 3000,
        "not UTF-8": b"study: \xff\xfe\n",
        "UTF-16": "study: x".encode("utf-16"),
        "control characters": b"study: \x01\x02\n",
        "NUL": b"study: a\x00b\n",
        "a tab": b"study:\n\t- x\n",
        "unclosed": b"study: {a: [1, 2\n",
        "two documents": b"study: x\n---\nstudy: y\n",
        "a mapping as a key": b"{a: 1}: x\n",
        "too large": b"# " + b"x" * 1_100_000,
        "a huge number": b"seed: " + b"9" * 5000 + b"\n",
        "a date": b"study: 2020-13-45\n",
    }
    return made + [Case(name, _file("study.yaml", text)) for name, text in texts.items()]


def config_cases() -> list[Case]:
    """mergekit's configuration for ``mergefront merge``."""
    made = [
        Case(name, _file("config.yaml", yaml.safe_dump(content).encode()), certainly_wrong=False)
        for name, content in broken_mappings(CONFIG)
    ]
    texts = {"empty": b"", "a list": b"[]", "a bomb": b"a: &a [x]\nmodels: [*a, *a]\n", "not UTF-8": b"\xff"}
    return made + [Case(name, _file("config.yaml", text)) for name, text in texts.items()]


def checkpoint_cases() -> list[Case]:
    """Checkpoints: hostile tensor headers, and files around them."""
    target = "models/maths/model.safetensors"
    good = good_header()
    name = "model.norm.weight"
    entries: dict[str, Any] = {
        "negative offsets": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
        "offsets backwards": {"dtype": "F32", "shape": [4], "data_offsets": [64, 48]},
        "offsets past the end": {"dtype": "F32", "shape": [4], "data_offsets": [2**40, 2**40 + 16]},
        "offsets past 64 bits": {"dtype": "F32", "shape": [4], "data_offsets": [2**64, 2**64 + 16]},
        "overlap": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "offsets as text": {"dtype": "F32", "shape": [4], "data_offsets": ["0", "16"]},
        "offsets as floats": {"dtype": "F32", "shape": [4], "data_offsets": [320.0, 336.0]},
        "offsets true": {"dtype": "F32", "shape": [4], "data_offsets": [False, True]},
        "three offsets": {"dtype": "F32", "shape": [4], "data_offsets": [320, 330, 336]},
        "no offsets": {"dtype": "F32", "shape": [4]},
        "another size": {"dtype": "F32", "shape": [5], "data_offsets": [320, 336]},
        "a huge shape": {"dtype": "F32", "shape": [2**31, 2**31, 2**31], "data_offsets": [320, 336]},
        "a shape that overflows": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [320, 336]},
        "a negative shape": {"dtype": "F32", "shape": [-4], "data_offsets": [320, 336]},
        "two negative sides": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [320, 336]},
        "a shape of text": {"dtype": "F32", "shape": ["4"], "data_offsets": [320, 336]},
        "a shape that is no list": {"dtype": "F32", "shape": 4, "data_offsets": [320, 336]},
        "no shape": {"dtype": "F32", "data_offsets": [320, 336]},
        "an unknown dtype": {"dtype": "F33", "shape": [4], "data_offsets": [320, 336]},
        "a dtype that is no word": {"dtype": ["F32"], "shape": [4], "data_offsets": [320, 336]},
        "no dtype": {"shape": [4], "data_offsets": [320, 336]},
        "another dtype": {"dtype": "F64", "shape": [4], "data_offsets": [320, 336]},
        "a list": [1, 2],
        "null": None,
        "text": "F32",
    }
    made = [
        Case(f"tensor: {kind}", _file(target, safetensors({**good, name: entry}))) for kind, entry in entries.items()
    ]
    deep = b'{"a":' * 50_000
    files: dict[str, bytes] = {
        "empty": b"",
        "seven bytes": b"\0" * 7,
        "a length only": struct.pack("<Q", 0),
        "length 2**63": safetensors(good, 2**63),
        "length 2**64 - 1": safetensors(good, 2**64 - 1),
        "length past the end": safetensors(good, 10**6),
        "length too short": safetensors(good, 20),
        "no JSON": safetensors(b"x" * 100),
        "not UTF-8": safetensors(b'{"\xff": 1}'),
        "a list": safetensors([]),
        "a number": safetensors(3),
        "NaN": safetensors(b'{"a": NaN}'),
        "nested deeply": safetensors(deep),
        "cut off": safetensors(good)[:-20],
        "no tensors": safetensors({}, data=b""),
        "a pickle": b"\x80\x04\x95" + b"x" * 100,
        "a zip": b"PK\x03\x04" + b"x" * 100,
        "zeros": b"\0" * 1000,
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    made += [Case(f"file: {kind}", _file(target, content)) for kind, content in files.items()]
    index = "models/maths/model.safetensors.index.json"
    indices: dict[str, Any] = {
        "outside": {"weight_map": {name: "../../../etc/passwd"}},
        "absolute": {"weight_map": {name: "/etc/passwd"}},
        "missing": {"weight_map": {name: "model-00001-of-00002.safetensors"}},
        "a list": [],
        "no map": {},
        "a map of lists": {"weight_map": {name: []}},
        "a map that is a list": {"weight_map": [name]},
        "a backslash": {"weight_map": {name: "..\\..\\x.safetensors"}},
        "a pickle": {"weight_map": {name: "pytorch_model.bin"}},
        "NUL": {"weight_map": {name: "model\0.safetensors"}},
    }

    def sharded(content: Any) -> Callable[[Path], None]:
        def break_it(folder: Path) -> None:
            (folder / target).unlink()
            (folder / index).write_text(json.dumps(content))

        return break_it

    made += [Case(f"index: {kind}", sharded(content)) for kind, content in indices.items()]
    for kind, content in {"no JSON": b"{", "a list": b"[]", "not UTF-8": b"\xff", "deep": b"[" * 50_000}.items():
        made.append(Case(f"config.json: {kind}", _file("models/maths/config.json", content)))
        made.append(Case(f"tokenizer.json: {kind}", _file("models/maths/tokenizer.json", content), False))
        adapter = _file("models/maths/adapter_config.json", content)
        made.append(Case(f"adapter_config.json: {kind}", adapter))

    def only_pickle(folder: Path) -> None:
        (folder / target).unlink()
        (folder / "models/maths/pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")

    def folder_in_the_way(folder: Path) -> None:
        (folder / target).unlink()
        (folder / target).mkdir()

    made += [Case("only a pickle", only_pickle), Case("a folder for a file", folder_in_the_way)]
    return made


def data_cases() -> list[Case]:
    """Task data."""
    target = "data/maths.jsonl"
    lines: dict[str, bytes] = {
        "empty": b"",
        "no JSON": b"hello\n",
        "a list a line": b"[]\n",
        "a number a line": b"1\n",
        "no prompt": b'{"answer": "1"}\n',
        "no answer": b'{"prompt": "1"}\n',
        "an empty answer": b'{"prompt": "1", "answer": ""}\n',
        "a number for an answer": b'{"prompt": "1", "answer": {"a": 1}}\n',
        "a number for a prompt": b'{"prompt": 1, "answer": "1"}\n',
        "an unknown key": b'{"prompt": "1", "answer": "1", "promt": "2"}\n',
        "not UTF-8": b'{"prompt": "\xff", "answer": "1"}\n',
        "nested deeply": b'{"prompt": ' + b"[" * 50_000 + b"\n",
        "cut off": b'{"prompt": "1", "answer": "1"}\n{"prompt": "2", "ans',
        "a bare array": b'[{"prompt": "1", "answer": "1"}]',
        "UTF-16": '{"prompt": "1", "answer": "1"}\n'.encode("utf-16"),
        "null": b"null\n",
        "a lone surrogate": b'{"prompt": "\\ud800", "answer": "1"}\n',
        "the same item twice": 2 * b'{"id": "a", "prompt": "1", "answer": "1"}\n',
    }
    unsure = {"an empty answer", "an unknown key", "a lone surrogate", "a number for an answer", "the same item twice"}
    made = [Case(kind, _file(target, content), kind not in unsure) for kind, content in lines.items()]

    def folder_in_the_way(folder: Path) -> None:
        (folder / target).unlink()
        (folder / target).mkdir()

    return [*made, Case("a folder", folder_in_the_way), Case("missing", lambda folder: (folder / target).unlink())]
