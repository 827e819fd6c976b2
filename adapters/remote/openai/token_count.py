"""Tokens counted on this machine, for endpoints that do not report them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mergefront.optimizer.errors import UserError


def token_counter(path: Path) -> Callable[[str], int]:
    """How many tokens a text has by the tokenizer.json at ``path`` (or in the folder ``path``).

    Special tokens around a text and what a chat template adds are not counted. Raises ``UserError``.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"backend.tokenizer: there is no {file}; give the folder of the model's tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("backend.tokenizer needs the package tokenizers: pip install tokenizers") from None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises this very class
        raise UserError(f"backend.tokenizer {file}: {error}") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
