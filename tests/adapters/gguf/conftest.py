"""A GGUF file with the tokenizer of a small vocabulary: a real one of 49,152 tokens takes seconds to read."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

TOKENS = 320


@pytest.fixture(scope="session")
def small_donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level pairs: an end of text, the 256 bytes, then pairs of letters, with their merges."""
    pytest.importorskip("xllamacpp")
    gguf = pytest.importorskip("gguf")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(bytes_to_unicode().values())
    pairs = list(product("abcdefgh", repeat=2))[: TOKENS - 1 - len(letters)]
    path = tmp_path_factory.mktemp("donor") / "donor.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", *letters, *("".join(pair) for pair in pairs)])
    writer.add_token_types([int(gguf.TokenType.CONTROL)] + [int(gguf.TokenType.NORMAL)] * (TOKENS - 1))
    writer.add_token_merges([" ".join(pair) for pair in pairs])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
