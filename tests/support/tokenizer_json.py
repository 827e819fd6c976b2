"""A tokenizer.json of a few whole words, as small as the tokenizers library takes one."""

from __future__ import annotations

import json
from collections.abc import Mapping


def of_words(vocabulary: Mapping[str, int]) -> str:
    """The file's text; the first word stands for all that are not known."""
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": dict(vocabulary), "unk_token": next(iter(vocabulary))}
    return json.dumps({"version": "1.0", **parts, "added_tokens": [], "model": model})
