"""Several models at once: everything that is wrong is said before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import CheckpointHeader, read_header, read_json
from mergefront.adapters.gguf.checkpoint import CONVERTER, plan_checkpoint
from mergefront.adapters.gguf.file import FloatType, GgufPlan, imported_gguf
from mergefront.adapters.gguf.lora import plan_lora
from mergefront.optimizer.errors import UserError

SUFFIX = ".gguf"


def plan_files(
    models: Sequence[Path], output: Path, *, base: Path | None, tokenizer_from: Path | None, dtype: FloatType
) -> dict[Path, GgufPlan]:
    """The file that each checkpoint or LoRA becomes.

    ``output`` is a file for one model that ends in .gguf, otherwise a folder, whose files are called after the models'
    folders. ``base`` is the folder of the LoRAs' base model; by default the one checkpoint among ``models``, else the
    one that the LoRA itself names, where that is a folder here. Raises ``UserError`` with every problem.
    """
    imported_gguf()
    problems: list[str] = []
    headers: list[CheckpointHeader] = []
    for path in models:
        try:
            headers.append(read_header(path))
        except UserError as error:
            problems.append(str(error))
    checkpoints = [header.path for header in headers if header.kind == "full"]
    if base is None and len(checkpoints) == 1:
        base = checkpoints[0]
    as_file = output.suffix == SUFFIX
    if as_file and len(models) > 1:
        problems.append(f"{output}: one file holds one model; give a folder for {len(models)} of them")
    plans: dict[Path, GgufPlan] = {}
    for header in headers:
        out = output if as_file else output / f"{header.path.resolve().name}{SUFFIX}"
        try:
            plans[out] = _planned(header, base, tokenizer_from, dtype)
            if out.exists():
                raise UserError(f"{out} exists already; remove it, or choose another place")
        except UserError as error:
            text = str(error)
            problems.append(text if text.startswith(str(header.path)) else f"{header.path}: {text}")
    names = Counter(header.path.resolve().name for header in headers)
    problems += [f"{count} models are called {name}, which is one file" for name, count in names.items() if count > 1]
    if problems:
        raise UserError("\n".join(problems))
    return plans


def _planned(header: CheckpointHeader, base: Path | None, tokenizer_from: Path | None, dtype: FloatType) -> GgufPlan:
    if header.kind == "lora":
        return plan_lora(header, _base_config(header, base), dtype)
    if tokenizer_from is None:
        raise UserError(
            "a checkpoint's tokenizer is taken from a GGUF file of the same vocabulary, such as a published "
            f"quantisation of the model: name it with --tokenizer FILE.gguf, or use llama.cpp's {CONVERTER}"
        )
    return plan_checkpoint(header, tokenizer_from, dtype)


def _base_config(header: CheckpointHeader, base: Path | None) -> dict[str, Any]:
    named = header.config.get("base_model_name_or_path")
    folder = base if base is not None else Path(str(named)) if named else None
    if folder is None or not (folder / "config.json").is_file():
        where = "" if folder is None else f" ({folder} has no config.json here)"
        raise UserError(f"its base model is not known{where}; name its folder with --base DIR")
    return dict(read_json(folder / "config.json"))
