"""What a merged folder holds beside its weights: configurations, tokenizer, files of processors and modules."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import read_json
from mergefront.adapters.merging.output.files import generation_config, token_ids, write_files
from mergefront.adapters.merging.output.plan import MergePlan


def write_metadata(plan: MergePlan, folder: Path, dtypes: Collection[str]) -> None:
    """Write everything but the weights, whose ``dtypes`` (torch's names) the configuration says if they are one."""
    reference = plan.reference.whole.path
    config = dict(plan.config)
    if config:
        if plan.tokenizer != reference and (plan.tokenizer / "config.json").exists():
            config = token_ids(config, read_json(plan.tokenizer / "config.json"))
        if len(dtypes) == 1:
            config |= {key: next(iter(dtypes)) for key in ("dtype", "torch_dtype") if key in config}
        _write_json(folder / "config.json", config)
    generation = generation_config(reference, plan.tokenizer)
    if generation is not None:
        _write_json(folder / "generation_config.json", generation)
    write_files(plan.files, plan.added_tokens, folder)
    if plan.chat_template is not None:
        (folder / "chat_template.jinja").write_text(plan.chat_template, encoding="utf-8")


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
