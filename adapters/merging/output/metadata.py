"""What a merged folder holds beside its weights: configurations, tokenizer, files of processors and modules."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import read_json
from mergefront.adapters.checkpoints.tokenizers import Vocabulary, read_vocabulary
from mergefront.adapters.merging.modalities import Composition, processor_file, tower_of_key
from mergefront.adapters.merging.output.files import (
    files_of,
    generation_config,
    is_token_key,
    processor_names,
    token_ids,
    tokenizer_files,
    write_files,
)
from mergefront.adapters.merging.vocabulary import Alignment
from mergefront.optimizer.errors import UserError


@dataclass(frozen=True)
class Description:
    """Everything of a merged model but its weights.

    ``frame`` is the model whose class and generation settings it has, ``config`` its config.json; ``tokenizer`` is the
    folder that the tokenizer comes from, to which ``added_tokens`` are appended (entries of tokenizer.json). ``files``
    are copied, ``settings`` written (JSON), both by their path in the folder.
    """

    frame: Path
    config: Mapping[str, Any]
    tokenizer: Path
    files: Mapping[str, Path]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    added_tokens: Sequence[Mapping[str, Any]] = ()
    chat_template: str | None = None


def describe(
    composition: Composition,
    aligned: Alignment,
    config: Mapping[str, Any],
    models: Iterable[Path],
    chat_template: str | None = None,
) -> Description:
    """What stands beside the weights of a merge with the configuration ``config``; ``models`` are its models' folders.

    Raises ``UserError`` for files that cannot be taken over (see ``files_of``) and for a tower whose tokens the
    merge's tokenizer lacks.
    """
    frame, tokenizer = composition.frame, aligned.tokenizer
    if composition.owners and not aligned.is_chosen and (frame / "tokenizer_config.json").exists():
        tokenizer = frame  # the same tokens, and what else the frame's processor asks of its tokenizer
    files = files_of(frame, [model for model in models if model.is_dir()])
    settings: dict[str, Mapping[str, Any]] = {}
    folders = {frame, *composition.owners.values()}
    for name in sorted({name for folder in folders for name in processor_names(folder)} if composition.owners else ()):
        files.pop(name, None)
        given = processor_file(name, frame, composition.owners)
        if isinstance(given, Path):
            files[name] = given
        elif given is not None:
            settings[name] = given
    files |= tokenizer_files(tokenizer)
    made = aligned.config(config)
    if tokenizer != frame and (tokenizer / "config.json").exists():
        made = token_ids(made, read_json(tokenizer / "config.json"))
    if composition.owners:
        tokens = read_vocabulary(tokenizer)
        ids = {} if tokens is None else {**tokens.ids, **{str(one["content"]): one["id"] for one in aligned.added}}
        owned = {tower: read_vocabulary(folder) for tower, folder in composition.owners.items()}
        made = _with_placeholders(made, ids, owned)
    return Description(frame, made, tokenizer, files, settings, aligned.added, chat_template)


def write_metadata(described: Description, folder: Path, dtypes: Collection[str]) -> None:
    """Write everything but the weights, whose ``dtypes`` (torch's names) the configuration says if they are one."""
    config = dict(described.config)
    if config:
        if len(dtypes) == 1:
            config |= {key: next(iter(dtypes)) for key in ("dtype", "torch_dtype") if key in config}
        _write_json(folder / "config.json", config)
    generation = generation_config(described.frame, described.tokenizer)
    if generation is not None:
        _write_json(folder / "generation_config.json", generation)
    write_files(described.files, described.added_tokens, folder)
    for name, content in described.settings.items():
        _write_json(folder / name, content)
    if described.chat_template is not None:
        (folder / "chat_template.jinja").write_text(described.chat_template, encoding="utf-8")


def _with_placeholders(
    config: Mapping[str, Any], ids: Mapping[str, int], owned: Mapping[str, Vocabulary | None]
) -> dict[str, Any]:
    """A configuration whose tokens that stand for images and sounds have the ids ``ids``, by their texts in the
    vocabularies of the towers' owners. Raises ``UserError`` for one that has no id."""
    made = dict(config)
    for key, value in config.items():
        if isinstance(value, Mapping):
            made[key] = _with_placeholders(value, ids, owned)
        tower = tower_of_key(key, list(owned))
        vocabulary = owned.get(tower) if tower is not None else None
        if vocabulary is None or type(value) is not int or not is_token_key(key) or not ids:
            continue
        text = next((token for token, at in vocabulary.ids.items() if at == value), None)
        if text is not None and text not in ids:
            raise UserError(
                f"carry: {tower}: its token {text!r} ({key} {value}) is none of the merge's tokenizer; take it over "
                "with tokenizer_source: union, or that model's name"
            )
        made[key] = value if text is None else ids[text]
    return made


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
