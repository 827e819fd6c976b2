"""Which tokens a model's folder knows, and whether two folders mean the same by them.

What counts is the map from tokens to rows of the embedding: the same tokenizer may be stored in another file, padding,
truncation and version may differ, and a token without a row (trainers add a pad token and leave the embedding) is none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import CheckpointHeader, TensorInfo, json_file, own_file, read_json
from mergefront.adapters.checkpoints.lora import read_lora
from mergefront.adapters.checkpoints.names import EMBEDDINGS
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import layer_of

_EXAMPLES = 3
_INPUT = (*EMBEDDINGS, "shared.weight", "token_embedding.weight", ".embeddings.weight")
_NO_TOKENS = ("position", "wpe", "norm", "projector")
"""Parts of names of tensors whose rows stand for no tokens, whatever their number."""
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "spm.model")
_PRINTED = (*range(33, 127), *range(161, 173), *range(174, 256))
_BYTES = {chr(byte): byte for byte in _PRINTED} | {
    chr(256 + at): byte for at, byte in enumerate(byte for byte in range(256) if byte not in _PRINTED)
}
"""What byte-level tokenizers write for each byte (GPT-2's table)."""
_OPAQUE = ("sentencepiece.bpe.model", "tekken.json", "*.tiktoken", "tokenizer.model*", "*.spm", "spiece.model")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a folder and their ids. ``added`` are entries of tokenizer.json beside its model's own tokens.

    ``digest`` stands for the tokens where a file's format is not read here: equal or not is all that is known.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    digest: str = ""

    def within(self, rows: int | None) -> Vocabulary:
        """Without tokens that have no row in an embedding of ``rows`` rows."""
        if rows is None or all(at < rows for at in self.ids.values()):
            return self
        kept = {token: at for token, at in self.ids.items() if at < rows}
        return Vocabulary(kept, {token: entry for token, entry in self.added.items() if token in kept}, self.digest)


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The tokens of a model's folder, or None where it has no tokenizer. Raises ``UserError`` for a broken file."""
    if not folder.is_dir():
        return None
    if (folder / "tokenizer.json").exists():
        file = json_file(folder / "tokenizer.json")
        return _fast(_File(_digest(file), folder / "tokenizer.json"))
    ids: dict[str, Any] | None = None
    sentencepiece = next((folder / name for name in _SENTENCEPIECE if (folder / name).exists()), None)
    if (folder / "vocab.json").exists():
        ids = read_json(folder / "vocab.json")
    elif (folder / "vocab.txt").exists():
        try:
            lines = own_file(folder, "vocab.txt").read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise _malformed(folder / "vocab.txt") from None
        ids = {token: at for at, token in enumerate(lines)}
    elif sentencepiece is not None:
        pieces = sentencepiece_pieces(own_file(folder, sentencepiece.name).read_bytes())
        ids = None if pieces is None else {piece: at for at, piece in enumerate(pieces)}
    if ids is None:
        files = sorted(file for pattern in _OPAQUE for file in folder.glob(pattern))
        return Vocabulary({}, {}, _digest(files[0])) if files else None
    return Vocabulary(_checked_ids({**ids, **_listed_tokens(folder)}, folder), {})


def differing_tokens(first: Vocabulary, second: Vocabulary, base: Path, expert: Path) -> str:
    """Which tokens differ, and where; empty when none does."""
    if first.digest or second.digest:
        shared = [file for pattern in (*_OPAQUE, *_SENTENCEPIECE) for file in base.glob(pattern)
                  if (expert / file.name).exists()]  # fmt: skip
        if any(_digest(file) == _digest(expert / file.name) for file in shared):
            return ""
        return "their files differ, and these files are compared as wholes; save both with a tokenizer.json"
    differing = [token for token in first.ids if second.ids.get(token) != first.ids[token]]
    differing += [token for token in second.ids if token not in first.ids]
    examples = [
        f"{token!r} is {first.ids.get(token, 'absent')} in the base and {second.ids.get(token, 'absent')} in the expert"
        for token in differing[:_EXAMPLES]
    ]
    more = f" and {len(differing) - _EXAMPLES} more" if len(differing) > _EXAMPLES else ""
    return ", ".join(examples) + more


def respelled(vocabulary: Vocabulary, like: Vocabulary) -> Vocabulary:
    """``vocabulary`` with tokens named as ``like`` names those of the same text, where both spell text differently.

    Byte-level tokenizers write a space as "Ġ", sentencepiece as "▁"; added tokens are no text and keep their names.
    """
    if _is_byte_level(vocabulary) == _is_byte_level(like):
        return vocabulary
    spelled = {_text(token, like): token for token in like.ids if token not in like.added}
    ids: dict[str, int] = {}
    for token, at in vocabulary.ids.items():
        name = token if token in vocabulary.added else spelled.get(_text(token, vocabulary), token)
        ids.setdefault(name, at)
    return Vocabulary(ids, vocabulary.added, vocabulary.digest)


def _is_byte_level(vocabulary: Vocabulary) -> bool:
    return "Ġ" in vocabulary.ids and "▁" not in vocabulary.ids


def _text(token: str, vocabulary: Vocabulary) -> bytes:
    """The bytes that a token stands for."""
    if not _is_byte_level(vocabulary):
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
        return bytes([int(byte[1], 16)]) if byte is not None else token.replace("▁", " ").encode()
    return b"".join(bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode() for letter in token)


def embedding_of(tensors: Iterable[str]) -> str | None:
    """The name of the tensor with one row for each token that is read, or None for models that read no tokens."""
    return next((name for name in tensors if name.endswith(_INPUT)), None)


def token_axes(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """By name, the axis along which a whole checkpoint's tensor has one entry for each token: embeddings, heads
    and their biases."""
    embedding = embedding_of(tensors)
    if embedding is None:
        return {}
    rows, found = tensors[embedding].shape[0], {}
    for name, info in tensors.items():
        if layer_of(name) is not None or any(part in name for part in _NO_TOKENS):
            continue
        if info.shape[:1] == (rows,) and (len(info.shape) == 2 or name.endswith("bias")):
            found[name] = 0
        elif name.endswith("final_logits_bias") and info.shape[1:] == (rows,):
            found[name] = 1
    return found


def lora_token_axes(lora: CheckpointHeader, base: CheckpointHeader) -> dict[str, tuple[str, int, bool]]:
    """By name of a LoRA's tensor: the base's tensor that it changes, its axis of tokens, and whether it is a whole
    tensor (a saved embedding) and not a factor."""
    contents, axes = read_lora(lora, base), token_axes(base.tensors)
    modules, whole = contents.modules, contents.whole
    found = {whole[target]: (target, axis, True) for target, axis in axes.items() if target in whole}
    for target in axes:
        module = modules.get(target)
        if module is not None:
            found[module.a if module.transposed else module.b] = (target, int(module.transposed), False)
    return found


def sentencepiece_pieces(data: bytes) -> list[str] | None:
    """The pieces of a sentencepiece model in the order of their ids, or None for bytes of another format.

    Field 1 of the model is one piece, whose field 1 is its text (sentencepiece_model.proto).
    """
    try:
        pieces = [
            next(text for number, text in _fields(piece) if number == 1)
            for field, piece in _fields(data) if field == 1
        ]  # fmt: skip
        return [text.decode() for text in pieces] or None
    except (IndexError, ValueError, StopIteration, RuntimeError):
        return None


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of every field of one protobuf message; numbers have empty content."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a field is longer than the message")
            yield key >> 3, data[at : at + length]
            at += length
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        elif key & 7 == 0:
            _, at = _varint(data, at)
        else:
            raise ValueError("an unknown kind of field")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


@dataclass(frozen=True)
class _File:
    """A file that is what its content is, wherever it lies."""

    digest: str
    path: Path = field(compare=False)


@lru_cache(maxsize=4)
def _fast(of: _File) -> Vocabulary:
    """A large vocabulary takes a second to read. A command asks for it several times, and experts often have the
    base's."""
    file = of.path
    content = read_json(file)
    try:
        vocabulary = (content.get("model") or {}).get("vocab", {})
        if isinstance(vocabulary, list):
            vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry for entry in content.get("added_tokens") or [] if "content" in entry}
        ids = {**vocabulary, **{token: entry["id"] for token, entry in added.items()}}
    except (TypeError, KeyError, IndexError, AttributeError):
        raise _malformed(file) from None
    return Vocabulary(_checked_ids(ids, file), added)


def _checked_ids(ids: Mapping[str, Any], file: Path) -> Mapping[str, int]:
    if not all(type(at) is int and at >= 0 for at in ids.values()):
        raise _malformed(file)
    return ids


def _malformed(file: Path) -> UserError:
    return UserError(f"{file}: its vocabulary is malformed; fetch or save the tokenizer again")


def _listed_tokens(folder: Path) -> dict[str, int]:
    """Tokens that stand beside a vocabulary file: in added_tokens.json and in tokenizer_config.json."""
    found: dict[str, int] = {}
    if (folder / "added_tokens.json").exists():
        found |= read_json(folder / "added_tokens.json")
    if (folder / "tokenizer_config.json").exists():
        listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        try:
            found |= {entry["content"]: int(at) for at, entry in listed.items()}
        except (TypeError, KeyError, ValueError, AttributeError):
            raise _malformed(folder / "tokenizer_config.json") from None
    return found


def _digest(file: Path) -> str:
    try:
        with own_file(file.parent, file.name).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: not readable: {error}") from None
