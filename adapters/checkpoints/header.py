"""Checkpoints on disk: what is in them (read without torch) and their tensors (memory-mapped).

safetensors' own reader tells no offsets, maps every file that it looks at, and does not say what is wrong with which
tensor; so headers are read here.

A checkpoint is one of

    a folder with ``model.safetensors``, or with shards and ``model.safetensors.index.json``
    a bare ``.safetensors`` file
    a PEFT LoRA folder: ``adapter_config.json`` and ``adapter_model.safetensors``

Pickled weights are refused, because loading them runs whatever code is in them. Headers come from
strangers as well, so every length and offset is checked against the file before it is used.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON, data).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mergefront.adapters.checkpoints.live_names import LiveTensor, live_tensors
from mergefront.adapters.checkpoints.lora_settings import lora_settings
from mergefront.adapters.checkpoints.names import HEADS, embedding_name, head_name, shared_embedding_name
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

DTYPES = {
    "BOOL": (1, "bool"), "U8": (1, "uint8"), "I8": (1, "int8"), "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"), "F8_E8M0": (1, "float8_e8m0fnu"), "U16": (2, "uint16"), "I16": (2, "int16"),
    "F16": (2, "float16"), "BF16": (2, "bfloat16"), "U32": (4, "uint32"), "I32": (4, "int32"),
    "F32": (4, "float32"), "U64": (8, "uint64"), "I64": (8, "int64"), "F64": (8, "float64"),
}  # fmt: skip
"""Bytes of an entry and torch's name, by the name that safetensors has."""
_LONGEST_HEADER = 100 * 1024 * 1024
_LARGEST_JSON = 256 * 1024 * 1024
"""Bytes; the largest tokenizers have about 40 MB."""
_MOST_LAYERS = 2000
_MOST_LABELS = 100_000
_CLASSIFIERS = ("Classification", "QuestionAnswering", "MultipleChoice")
_LANGUAGE_MODELS = ("ForMaskedLM", "ForPreTraining", "ForCausalLM", "LMHeadModel")
_ENCODER_EMBEDDINGS = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight")
"""Of BERT and what is built like it."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = (
    "convert it to safetensors first: load it where you trust it and call "
    "model.save_pretrained(folder) (transformers 5 writes safetensors)"
)


class TensorInfo(NamedTuple):
    """Shape, safetensors dtype (``"BF16"``) and place (file, byte range) of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    begin: int
    end: int


@dataclass(frozen=True)
class CheckpointHeader:
    """A checkpoint without its numbers. ``config`` is config.json or adapter_config.json, or empty.

    ``carried`` names tensors that every merge takes from here as they are, where text alone is merged (None: all is).
    """

    path: Path
    kind: Literal["full", "lora"]
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    carried: frozenset[str] | None = None

    @property
    def bytes(self) -> int:
        """Bytes of tensor data."""
        return sum(info.end - info.begin for info in self.tensors.values())

    @property
    def tied(self) -> bool:
        """Whether the output head shares the embedding's storage, as far as the header tells."""
        if head_name(self.tensors) is None and self._is_headless:
            return False  # configurations say true of classes without a head too
        if "tie_word_embeddings" in self.config:
            return bool(self.config["tie_word_embeddings"])
        return head_name(self.tensors) is None and embedding_name(self.tensors) is not None

    @property
    def _is_headless(self) -> bool:
        """Whether the class has no output head: classifiers, and encoders that are saved as no language model.

        A decoder that is saved without its head gets one when it continues texts.
        """
        architecture = str((self.config.get("architectures") or [""])[0])
        is_encoder = any(name.endswith(_ENCODER_EMBEDDINGS) for name in self.tensors)
        return architecture.endswith(_CLASSIFIERS) or (
            is_encoder and architecture != "" and not architecture.endswith(_LANGUAGE_MODELS)
        )

    @cached_property
    def live(self) -> Mapping[str, LiveTensor]:
        """What transformers makes of the tensors at load, by its names for it; empty where it does not know them."""
        if not (self.path / "config.json").is_file():
            return {}
        # The folder's own shapes, which its configuration has: here, added tokens may have added rows.
        return live_tensors(self.path, {name: info.shape for name, info in read_header(self.path).tensors.items()})

    def repeated_by(self, name: str) -> str | None:
        """The tensor whose numbers ``name`` repeats, stored or not: a tied head's embedding, or the embedding that an
        encoder and a decoder share. None for a tensor of its own."""
        if name.endswith(HEADS) and self.tied:
            return shared_embedding_name(self.tensors) or embedding_name(self.tensors)
        return shared_embedding_name(self.tensors) if name.endswith("coder.embed_tokens.weight") else None


def read_header(path: str | Path) -> CheckpointHeader:
    """What a checkpoint contains, from headers alone (no torch, no tensor data).

    Raises ``UserError`` for a path that is missing, pickled, incomplete or malformed.
    """
    path = Path(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: there is no such file or folder") from None
    except (OSError, ValueError) as error:  # too long, no permission, a NUL inside
        raise UserError(f"{str(path)[:200]!r}: no usable path: {getattr(error, 'strerror', None) or error}") from None
    if path.is_file():
        _refuse_pickle(path)
        if path.suffix != ".safetensors":
            raise UserError(
                f"{path}: not a safetensors file; give a folder with model.safetensors or a .safetensors file"
            )
        return CheckpointHeader(path, "full", read_safetensors_header(path), (path,), {})
    if not path.is_dir():
        raise UserError(f"{path}: a device, a pipe or a socket, which is never opened; give a folder or a file")
    # Libraries open further files by their names: those of tokenizers and image processors, and chat templates.
    for entry in sorted((*path.iterdir(), *path.glob("*chat_templates/*"))):
        if not entry.is_dir():
            own_file(path, str(entry.relative_to(path)))
    if (path / "adapter_config.json").exists():
        return _read_lora(path)
    config = read_json(path / "config.json") if (path / "config.json").exists() else {}
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        files = [path / "model.safetensors"]
    elif index.exists():
        return _read_sharded(path, index, config)
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
        if pickles:
            raise UserError(f"{path}: only pickled weights ({pickles[0]}), which can run code when loaded; {_CONVERT}")
        raise UserError(
            f"{path}: no model.safetensors, no shards with an index and no adapter_config.json in this folder"
        )
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_safetensors_header(file).items():
            if name in tensors:
                raise UserError(f"{path}: tensor {name!r} is in both {tensors[name].file.name} and {file.name}")
            tensors[name] = info
    return CheckpointHeader(path, "full", tensors, tuple(files), config)


def _read_sharded(path: Path, index: Path, config: Mapping[str, Any]) -> CheckpointHeader:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{index}: 'weight_map' must map tensor names to file names")
    tensors: dict[str, TensorInfo] = {}
    files = []
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise UserError(f"{index}: shard {shard!r} must be a plain file name in the same folder")
        file = path / shard
        _refuse_pickle(file)
        if not file.exists():
            raise UserError(f"{path}: shard {shard} named in {index.name} is missing; fetch the checkpoint again")
        files.append(file)
        header = read_safetensors_header(file)
        for name in (name for name, where in weight_map.items() if where == shard):
            if name not in header:
                raise UserError(f"{path}: {index.name} places tensor {name!r} in {shard}, which does not contain it")
            tensors[name] = header[name]
    return CheckpointHeader(path, "full", tensors, tuple(files), config)


def _read_lora(path: Path) -> CheckpointHeader:
    config = read_json(path / "adapter_config.json")
    file = path / "adapter_model.safetensors"
    if not file.exists():
        if (path / "adapter_model.bin").exists():
            raise UserError(
                f"{path}: the LoRA is pickled (adapter_model.bin), which can run code when loaded; {_CONVERT}"
            )
        raise UserError(f"{path}: adapter_config.json is there but adapter_model.safetensors is missing")
    lora_settings(path, config)
    return CheckpointHeader(path, "lora", read_safetensors_header(file), (file,), config)


def read_safetensors_header(file: Path) -> dict[str, TensorInfo]:
    """Names, shapes, dtypes and absolute byte ranges of one safetensors file; nothing is trusted."""
    if not file.is_file():
        raise UserError(f"{file}: this is no file; fetch the checkpoint again")
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise UserError(f"{file}: {size} bytes are too few for a safetensors file; fetch it again")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, _LONGEST_HEADER):
            raise UserError(f"{file}: the header claims {length} bytes, the file has {size}; it is damaged or cut off")
        text = stream.read(length)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{file}: the header is not valid JSON; the file is damaged or not safetensors") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: the header must be a JSON object")
    start, tensors = 8 + length, {}
    for name, entry in content.items():
        if name != "__metadata__":
            tensors[name] = _tensor_info(file, name, entry, start, size)
    end = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin < end:
            raise UserError(f"{file}: tensor {name!r} overlaps another one; the file is damaged")
        end = info.end
    return tensors


def _tensor_info(file: Path, name: str, entry: Any, start: int, size: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        integers = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        integers, dtype, shape, begin, end = False, None, (), 0, 0
    if not integers or not isinstance(dtype, str):
        raise UserError(f"{file}: tensor {name!r}: the header's entry is malformed; the file is damaged")
    if dtype not in DTYPES:
        raise UserError(f"{file}: tensor {name!r} has the unsupported dtype {dtype!r} (known: {', '.join(DTYPES)})")
    if end - begin != math.prod(shape) * DTYPES[dtype][0]:
        raise UserError(f"{file}: tensor {name!r}: {end - begin} bytes do not hold shape {list(shape)} of {dtype}")
    if start + end > size:
        raise UserError(f"{file}: tensor {name!r} ends at byte {start + end}, the file at {size}; it is cut off")
    return TensorInfo(shape, dtype, file, start + begin, start + end)


def _refuse_pickle(file: Path) -> None:
    if file.suffix in _PICKLES:
        raise UserError(f"{file}: pickled weights can run code when loaded; {_CONVERT}")


def own_file(folder: Path, name: str) -> Path:
    """The file itself behind a path in a model's folder.

    Raises ``UserError`` for a link that leaves the folder, since a stranger's could lead to any file of the user's, and
    for what is no file: opening a pipe waits for ever.
    """
    origin, home = folder / name, folder.resolve()
    try:
        target = origin.resolve()
    except (OSError, RuntimeError):  # Python 3.12 and older raise for links in a circle
        target = origin
    # The cache of the Hub keeps a snapshot's files as links to the blobs of the same repository.
    blobs = next((folder.parent / "blobs" for folder in home.parents if folder.name == "snapshots"), home)
    if not target.is_relative_to(home) and not target.is_relative_to(blobs):
        raise UserError(f"{origin}: this link leads out of the model's folder, to {target}; put the file itself there")
    if not target.is_file():
        raise UserError(f"{origin}: this is no file; fetch the model again")
    return target


def json_file(file: Path) -> Path:
    """Where a JSON file of a model's folder lies. Raises ``UserError`` for one that is too large to be read."""
    own = own_file(file.parent, file.name)
    if own.stat().st_size > _LARGEST_JSON:
        raise UserError(f"{file}: it has more than {_LARGEST_JSON:,} bytes; it is no file of a model")
    return own


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder. Raises ``UserError``."""
    try:
        content = json.loads(json_file(file).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: it must be a JSON object")
    if file.name in ("config.json", "generation_config.json"):
        _check_kinds(file, content)
    return content


def _check_kinds(file: Path, section: Mapping[str, Any], where: str = "") -> None:
    """Raises ``UserError`` for a value of a kind that its key never has; whoever reads it may rely on the kind."""
    for key, value in section.items():
        rule = next((rule for rule in _KINDS if re.fullmatch(rule[0], key)), None)
        if rule is not None and value is not None and not rule[2](value):
            raise UserError(f"{file}: {where}{key} is {value!r:.80}; it must be {rule[1]}")
        if isinstance(value, Mapping) and key.endswith("_config"):
            _check_kinds(file, value, f"{where}{key}.")


def _is_whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _are_whole(value: Any, most: int) -> bool:
    """Whether a value is a whole number of at most ``most``, or several."""
    several = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else (value,)
    return all(_is_whole(one) and one <= most for one in several)


_KINDS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("model_type", "a word", lambda value: isinstance(value, str)),
    (
        "architectures",
        "a list of words",
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    ),
    ("tie_word_embeddings", "true or false", lambda value: isinstance(value, bool)),
    (r"vocab_size|num_nextn_predict_layers", "a whole number", _is_whole),
    (r"max_position_embeddings|n_positions|n_ctx", "a number", lambda value: type(value) in (int, float)),
    (
        r"(num_)?(hidden|encoder|decoder)_layers|n_layers?|num_layers|depth",
        f"a whole number of at most {_MOST_LAYERS:,}",
        lambda value: _are_whole(value, _MOST_LAYERS),
    ),
    ("num_labels", f"a whole number of at most {_MOST_LABELS:,}", lambda value: _are_whole(value, _MOST_LABELS)),
    (
        r"rope_scaling|rope_parameters|auto_map|(text|vision|audio|quantization)_config",
        "a mapping",
        lambda value: isinstance(value, Mapping),
    ),
    (r"(\w+_)?token_ids?|\w+_token_index", "a token's number", lambda value: _are_whole(value, 2**63)),
)
"""Keys of configurations, as patterns, and what their values are where there are any. transformers makes modules and
lists of the length that a number says."""


def read_array(info: TensorInfo) -> NDArray[np.float32]:
    """A tensor's numbers in float32, without torch; bfloat16, which numpy lacks, is widened exactly."""
    import numpy as np

    with info.file.open("rb") as stream:
        stream.seek(info.begin)
        data = stream.read(info.end - info.begin)
    if info.dtype == "BF16":
        bits = np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(info.shape)
    if info.dtype not in ("F16", "F32", "F64"):
        raise UserError(f"{info.file}: a tensor is of type {info.dtype}; floating-point weights are needed")
    return np.frombuffer(data, dtype=f"<f{DTYPES[info.dtype][0]}").astype(np.float32).reshape(info.shape)


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """The tensors of a checkpoint on disk by name, memory-mapped: a tensor costs memory when it is read.

    The mapping is private: writing to a tensor never reaches the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.header = read_header(path)
        self._storages: dict[Path, torch.UntypedStorage] = {}

    @property
    def path(self) -> Path:
        """Where the checkpoint lies."""
        return self.header.path

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        info = self.header.tensors[name]
        item_bytes, torch_name = DTYPES[info.dtype]
        dtype = getattr(torch, torch_name)
        if info.begin == info.end:
            return torch.empty(info.shape, dtype=dtype)
        if info.file not in self._storages:
            size = info.file.stat().st_size
            self._storages[info.file] = torch.UntypedStorage.from_file(  # type: ignore[assignment]
                str(info.file), shared=False, nbytes=size
            )
        data = torch.empty(0, dtype=torch.uint8).set_(self._storages[info.file])[info.begin : info.end]
        if info.begin % item_bytes:
            data = data.clone()
        return data.view(dtype).view(info.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.header.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def release(self) -> None:
        """Forget the mappings, so that pages which nothing else uses leave this process's memory."""
        self._storages.clear()
