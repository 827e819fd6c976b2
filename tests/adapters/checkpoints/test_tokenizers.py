"""Which tokens a folder knows: the same tokenizer in another file is the same, and what differs is named."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.checkpoints.tokenizers import (
    Vocabulary,
    differing_tokens,
    read_vocabulary,
    respelled,
    sentencepiece_pieces,
)
from mergefront.optimizer.errors import UserError

TOKENS = ["<unk>", "<s>", "</s>", "▁a", "b", "ﬁ"]
IDS = {token: at for at, token in enumerate(TOKENS)}
ADDED = {"id": 6, "content": "<pad>", "special": True}


def folder(path: Path, **files: Any) -> Path:
    path.mkdir()
    for name, content in files.items():
        file = path / name.replace("__", ".")
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def sentencepiece(pieces: list[str]) -> bytes:
    """A sentencepiece model as its library writes it: pieces with a score and a kind, then two specifications."""
    made = b""
    for at, piece in enumerate(pieces):
        text = piece.encode()
        body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + b"\x00\x00\x80\xbf" + b"\x18" + bytes([1 + at % 6])
        made += b"\x0a" + bytes([len(body)]) + body
    return made + b"\x12\x03\x08\xac\x02" + b"\x1a\x02\x0a\x00"


def difference(first: Path, second: Path) -> str:
    vocabularies = read_vocabulary(first), read_vocabulary(second)
    assert vocabularies[0] is not None and vocabularies[1] is not None
    return differing_tokens(vocabularies[0], vocabularies[1], first, second)


FORMS: dict[str, dict[str, Any]] = {
    "fast": {"tokenizer__json": {"model": {"vocab": IDS}, "added_tokens": [ADDED]}},
    "fast, padded": {
        "tokenizer__json": {
            "version": "2.0", "padding": {"strategy": "BatchLongest"}, "truncation": {"max_length": 8},
            "model": {"vocab": IDS}, "added_tokens": [{**ADDED, "special": False}],
        }
    },
    "unigram": {"tokenizer__json": {"model": {"vocab": [[token, -1.0] for token in TOKENS]}, "added_tokens": [ADDED]}},
    "vocabulary": {"vocab__json": IDS, "merges__txt": "", "added_tokens__json": {"<pad>": 6}},
    "lines": {"vocab__txt": "\n".join([*TOKENS, "<pad>"]) + "\n"},
    "sentencepiece": {
        "tokenizer__model": sentencepiece(TOKENS),
        "tokenizer_config__json": {"added_tokens_decoder": {"6": {"content": "<pad>"}}},
    },
    "spiece": {"spiece__model": sentencepiece([*TOKENS, "<pad>"])},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_same_tokenizer_in_another_file_is_the_same(tmp_path: Path, form: str) -> None:
    assert difference(folder(tmp_path / "a", **FORMS["fast"]), folder(tmp_path / "b", **FORMS[form])) == ""


def test_a_vocabulary_is_that_of_the_files_content_wherever_it_lies(tmp_path: Path) -> None:
    """Experts with the base's tokenizer would each take seconds; one that is trained again would keep the old one."""
    first, second = folder(tmp_path / "a", **FORMS["fast"]), folder(tmp_path / "b", **FORMS["fast"])
    assert read_vocabulary(first) is read_vocabulary(second)
    before = (first / "tokenizer.json").read_text()
    after = before.replace('"b"', '"z"')
    assert len(after) == len(before) and after != before
    (first / "tokenizer.json").write_text(after)
    changed, kept = read_vocabulary(first), read_vocabulary(second)
    assert changed is not None and kept is not None
    assert "z" in changed.ids and "b" not in changed.ids and kept.ids == IDS | {"<pad>": 6}


def test_what_differs_is_named(tmp_path: Path) -> None:
    other = {**IDS, "b": 5, "ﬁ": 4, "new": 6}
    found = difference(
        folder(tmp_path / "a", **FORMS["fast"]), folder(tmp_path / "b", tokenizer__json={"model": {"vocab": other}})
    )
    assert "'b' is 4 in the base and 5 in the expert" in found and found.endswith("and 1 more")


def test_files_of_other_formats_are_compared_as_wholes(tmp_path: Path) -> None:
    ranks = base64.b64encode(b"a") + b" 0\n"
    same = [folder(tmp_path / name, qwen__tiktoken=ranks.decode()) for name in ("a", "b")]
    assert difference(*same) == ""
    other = folder(tmp_path / "c", qwen__tiktoken=ranks.decode() + "Yg== 1\n")
    assert "save both with a tokenizer.json" in difference(same[0], other)
    assert read_vocabulary(folder(tmp_path / "none", config__json={})) is None


def test_broken_files_are_errors_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="malformed"):
        read_vocabulary(folder(tmp_path / "a", tokenizer__json={"model": {"vocab": {"x": "0"}}}))
    for cut in range(1, 40):
        sentencepiece_pieces(sentencepiece(TOKENS)[:-cut])
    assert sentencepiece_pieces(b"{}") is None and sentencepiece_pieces(b"\xff" * 40) is None


def test_tokens_of_one_text_are_one_token_however_they_are_spelled() -> None:
    bytewise = Vocabulary({"Ġ": 0, "Ġthe": 1, "Ċ": 2, "é": 3, "<end>": 4, "Ã©": 5}, {"<end>": ADDED})
    pieces = Vocabulary({"▁": 0, "▁the": 1, "<0x0A>": 2, "é": 3, "<end>": 4, "▁le": 5}, {"<end>": ADDED})
    assert respelled(pieces, bytewise).ids == {"Ġ": 0, "Ġthe": 1, "Ċ": 2, "Ã©": 3, "<end>": 4, "▁le": 5}
    assert respelled(pieces, pieces) is pieces and respelled(bytewise, bytewise) is bytewise
    assert respelled(bytewise, pieces).ids["▁the"] == 1


WRONG = (-1, 1.5, "x", [1], [[1]], [None], {"a": 1.5}, {"a": None}, [{"content": [1], "id": 1}])


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_malformed_tokenizers_are_refused_in_words(tmp_path: Path, value: object) -> None:
    files: dict[str, object] = {
        "tokenizer.json": {"model": value},
        "vocab.json": {"a": value},
        "added_tokens.json": {"a": value},
        "tokenizer_config.json": {"added_tokens_decoder": value},
    }
    if value == {"a": 1.5} or value == {"a": None}:
        files["tokenizer.json"] = {"model": {"vocab": value}}
    for name, content in files.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vocab.json").write_text('{"a": 0}')
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(UserError, match="vocabulary is malformed"):
            read_vocabulary(folder)
