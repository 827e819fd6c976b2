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
from mergefront.adapters.hub.places import ModelPlaces, Preview
from mergefront.optimizer.errors import UserError

SUFFIX = ".gguf"


def plan_files(
    models: Sequence[str],
    output: Path,
    *,
    base: str | None,
    tokenizer_from: Path | None,
    dtype: FloatType,
    densities: Sequence[float] = (),
) -> dict[Path, GgufPlan]:
    """The file that each checkpoint or LoRA, a folder here or a name on the Hub, becomes.

    ``output`` is a file for one model that ends in .gguf, otherwise a folder, whose files are called after the models.
    ``base`` is the LoRAs' base model; by default the one checkpoint among ``models``, else the one that the LoRA itself
    names. A LoRA is also written at each of ``densities``, as NAME@DENSITY. Raises ``UserError`` with every problem.
    """
    imported_gguf()
    places, problems = ModelPlaces(Path.cwd()), list[str]()
    headers: dict[str, CheckpointHeader] = {}
    for model in models:
        try:
            headers[model] = read_header(places.folder(model))
        except UserError as error:
            problems.append(str(error))
    checkpoints = [model for model, header in headers.items() if header.kind == "full"]
    if base is None and len(checkpoints) == 1:
        base = checkpoints[0]
    as_file = output.suffix == SUFFIX
    if as_file and (len(models) > 1 or densities):
        problems.append(f"{output}: one file holds one model at one density; give a folder for more")
    plans: dict[Path, GgufPlan] = {}
    names: Counter[str] = Counter()
    for model, header in headers.items():
        on_hub = places.hub_name(model)
        name = header.path.resolve().name if on_hub is None else Path(on_hub.repository, on_hub.folder).name
        names[name] += 1
        shares = (1.0, *densities) if header.kind == "lora" else (1.0,)
        copies = {share: name if share == 1.0 else f"{name}@{share:g}" for share in shares}
        try:
            for share, copy in copies.items():
                out = output if as_file else output / f"{copy}{SUFFIX}"
                plans[out] = _planned(header, base, tokenizer_from, dtype, share)
                if out.exists():
                    raise UserError(f"{out} exists already; remove it, or choose another place")
        except UserError as error:
            text = str(error)
            problems.append(text if text.startswith(str(header.path)) else f"{model}: {text}")
    problems += [f"{count} models are called {name}, which is one file" for name, count in names.items() if count > 1]
    if problems:
        raise UserError("\n".join(problems))
    return plans


def _planned(
    header: CheckpointHeader, base: str | None, tokenizer_from: Path | None, dtype: FloatType, density: float
) -> GgufPlan:
    if header.kind == "lora":
        return plan_lora(header, _base_config(header, base), dtype, density)
    if tokenizer_from is None:
        raise UserError(
            "a checkpoint's tokenizer is taken from a GGUF file of the same vocabulary, such as a published "
            f"quantisation of the model: name it with --tokenizer FILE.gguf, or use llama.cpp's {CONVERTER}"
        )
    return plan_checkpoint(header, tokenizer_from, dtype)


def _base_config(header: CheckpointHeader, base: str | None) -> dict[str, Any]:
    """The base model's config.json; of one on the Hub no weights are fetched."""
    named = base or header.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise UserError("its base model is not known; name it with --base")
    preview = Preview(Path.cwd())  # its folders last as long as it does
    try:
        return dict(read_json(preview.folder(named) / "config.json"))
    except UserError as error:
        raise UserError(f"its base model cannot be read; name it with --base ({error})") from None
