"""What a folder says of the chat template of its tokenizer, without a model library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergefront.adapters.checkpoints.header import read_json
from mergefront.optimizer.foreign_text import file_content


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of a tokenizer say of its chat template."""

    chat_template: str | Mapping[str, str] | None
    special_tokens_map: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> TokenizerFiles:
        """Of a folder with tokenizer_config.json, or of the tokenizer.json in it; raises ``UserError``."""
        folder = path if path.is_dir() else path.parent
        described = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        template, file = described.get("chat_template"), folder / "chat_template.jinja"
        if file.is_file():
            template = file_content(file).decode("utf-8")
        elif isinstance(template, list):
            template = {str(one["name"]): str(one["template"]) for one in template}
        tokens = {key: value for key, value in described.items() if key.endswith("_token")}
        texts = {key: value["content"] if isinstance(value, Mapping) else value for key, value in tokens.items()}
        return cls(template, {key: text for key, text in texts.items() if isinstance(text, str)})
