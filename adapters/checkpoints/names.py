"""What tensors and files of a Hugging Face checkpoint are called."""

from __future__ import annotations

from collections.abc import Iterable

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def embedding_name(tensors: Iterable[str]) -> str | None:
    """The name of the input embedding among tensor names, or None."""
    return next((name for name in tensors if name.endswith(EMBEDDINGS)), None)


def head_name(tensors: Iterable[str]) -> str | None:
    """The name of the output head among tensor names, or None."""
    return next((name for name in tensors if name.endswith(HEADS)), None)
