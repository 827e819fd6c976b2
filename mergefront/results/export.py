"""A candidate as a folder: weights, tokenizer, mergekit YAML, exact recipe, model card.

| file | is |
| --- | --- |
| README.md | the model card: scores with standard errors, coefficients, how it was found |
| mergekit_config.yml | the merge as mergekit reads it |
| recipe.json | the recipe exactly as it was evaluated, seed included |
| the rest | the model: weights, config, tokenizer (not with ``config_only``) |
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mergefront.adapters.checkpoints.configurations import EVERYTHING
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.merging.output.references import given_references, map_references, model_paths, read_reference
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.yaml_file import read_mapping
from mergefront.study.definition import StudyDefinition
from mergefront.study.stored_study import Candidate, Study

CONFIG = "mergekit_config.yml"
RECIPE = "recipe.json"
CARD = "README.md"


def export_candidate(
    study: Study,
    candidate: Candidate,
    out: str | Path,
    *,
    config_only: bool = False,
    as_lora: bool = False,
    twin: int | None = None,
) -> Path:
    """Write one evaluated candidate to ``out``, a new or empty folder, and return it.

    ``as_lora`` writes a sum of LoRAs, or a merge by a LoRA method, as one PEFT LoRA instead of folding it into the
    base. ``twin`` is the rank of LoRAs, one for each expert, of what the merge lost of it (see ``results.twin``).
    The folder appears whole or not at all. Raises ``UserError`` when ``out`` is in use, or when the
    study knows its models by name only, so that there are no weights to merge.
    """
    from mergefront.adapters.merging.output.directory import write_merge
    from mergefront.results.model_card import model_card
    from mergefront.study.evaluators import is_mixture, merge_plan, mergekit_config, missing_weights, written_dtype

    root = study.root
    recipe = candidate.recipe
    places = study.places
    paths = model_paths(recipe, study.space.base_model, places)
    missing = missing_weights(study.definition, recipe)
    if missing and not config_only:
        raise UserError(
            f"export: there are no weights for {', '.join(missing)} under {root}; "
            "write the configuration alone with --config-only"
        )
    # The study was searched with these models: what only new searches are refused for must not hide its results.
    of_mixture = is_mixture(study.definition)
    if of_mixture and (as_lora or twin is not None):
        raise UserError("export: experts inside one mixture are written as a whole model; leave the option out")
    planned = not (as_lora or config_only or of_mixture)
    plan = merge_plan(study.definition, recipe, allow=(EVERYTHING,)) if planned else None
    out_dtype = written_dtype(study.definition, recipe) if plan is None else plan.out_dtype
    config = mergekit_config(study.definition, recipe, out_dtype)
    with new_folder(Path(out)) as folder:
        if as_lora:
            _merge_lora(study.definition, recipe, folder)
        elif of_mixture and not config_only:
            write_mixture(study, recipe, folder)
        elif plan is not None:
            write_merge(plan, folder)
            if twin is not None:
                from mergefront.results.twin.export import write_twin

                write_twin(study, plan, folder, twin)
        (folder / CONFIG).write_text(yaml_text(config), encoding="utf-8")
        (folder / RECIPE).write_text(json.dumps(recipe.to_json(), indent=2) + "\n", encoding="utf-8")
        named = hub_names(recipe, study.space.base_model, places)
        card = model_card(study, candidate, config, named, folder, paths)
        (folder / CARD).write_text(card, encoding="utf-8")
    return Path(out)


def write_mixture(study: Study, recipe: Recipe, folder: Path) -> None:
    """Write what a study of one mixture makes of a recipe into a folder that is there."""
    from mergefront.study.evaluators import mixture_backend

    backend = mixture_backend(study.definition)
    with backend.apply(recipe):
        backend.write_into(folder)


def merge_config(config: str | Path, out: str | Path, allow: Collection[str] = ()) -> Path:
    """Make the merge that a mergekit-format file says, in ``out``, a new or empty folder.

    Relative paths start from the current folder, as in mergekit, or else from the file's own folder.
    ``allow``: see ``merge_to_directory``. Raises ``UserError`` for a file that cannot be read or says what is not
    supported.
    """
    from mergefront.adapters.merging.output.directory import merge_to_directory

    path = Path(config)
    content = read_mapping(path, "merge configuration", "merge_method and models")
    folders = (Path.cwd(), path.resolve().parent)
    if content.get("merge_method") == "merge_experts":
        from mergefront.adapters.local.mixture.merging import merge_experts

        if allow:
            raise UserError("merge_experts reads one model, so that --allow has no meaning; leave it out")
        places = ModelPlaces(Path())
        return merge_experts(content, lambda given: places.folder(str(read_reference(given, folders))), Path(out))
    return merge_to_directory(
        map_references(content, lambda reference: str(read_reference(reference, folders))), Path(out), allow=allow
    )


def hub_names(recipe: Recipe, base_model: str | None, places: ModelPlaces) -> list[str]:
    """The models that are names on the Hub, base first: what a card may link to."""
    named = (places.hub_name(reference) for reference in given_references(recipe, base_model).values())
    return list(dict.fromkeys(name.repository for name in named if name is not None))


def yaml_text(config: Mapping[str, Any]) -> str:
    """YAML with full-precision numbers, in the given order."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``out`` at the end, or is removed when writing fails.

    Raises ``UserError`` when ``out`` exists and is not an empty folder, or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: this exists already; name a new or an empty folder")
    parent = out.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.resolve().name}-", dir=parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    try:
        yield made
        mask = os.umask(0)
        os.umask(mask)
        made.chmod(0o777 & ~mask)
        if out.exists():
            out.rmdir()
        made.rename(out.resolve())
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _merge_lora(definition: StudyDefinition, recipe: Recipe, folder: Path) -> None:
    """Write a candidate as one LoRA. Raises ``UserError`` with the reason where it is none."""
    from mergefront.adapters.checkpoints.header import read_header
    from mergefront.adapters.merging.loras.pool import merge_lora_recipe, write_lora

    places, base = definition.places, definition.space.base_model
    loras = model_paths(recipe, None, places)
    whole = None if base is None else places.folder(base)
    try:
        if definition.tokenizer_source not in (None, "base"):
            raise UserError("the merge has other tokens than the base (tokenizer_source)")
        if definition.modalities.scope is not None:
            raise UserError("the merge leaves out what the LoRAs change in towers, or takes it whole (scope)")
        merged = merge_lora_recipe(recipe, loras, read_header(whole) if whole is not None and whole.is_dir() else None)
        write_lora(merged, folder, next(iter(loras.values())))
    except UserError as error:
        raise UserError(f"export --as-lora: {error}; without --as-lora it is written as a whole model") from None
