"""Commands that write models: export, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergefront.cli.options import storage_option
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    from mergefront.study.stored_study import Candidate, Study


@click.command(short_help="Write one merge as a model: weights, tokenizer, mergekit YAML, model card.")
@click.argument("name")
@storage_option
@click.option("--trial", type=click.IntRange(min=0), metavar="N", help="This trial.")
@click.option("--knee", is_flag=True, help="The front's knee: the best balance of all objectives.")
@click.option("--prefer", metavar="NAME=WEIGHT,...", help="The front member for these weights of the objectives.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; new or empty.")
@click.option("--config-only", is_flag=True, help="No weights: mergekit YAML, recipe and model card only.")
@click.option("--as-lora", is_flag=True, help="A merge of LoRAs as one PEFT LoRA, not folded into the base model.")
def export(
    name: str,
    storage: str,
    trial: int | None,
    knee: bool,
    prefer: str | None,
    out: Path,
    config_only: bool,
    as_lora: bool,
) -> None:
    """Write one merge of study NAME to a folder, with a model card that says how it was found.

    \b
    Examples:
      mergefront export skills --knee --out merged
      mergefront export skills --trial 17 --out merged --config-only
      mergefront export skills --prefer maths=0.7,french=0.3 --out merged
    """
    from mergefront.results.export import export_candidate
    from mergefront.study.stored_study import load_study

    if config_only and as_lora:
        raise UserError("export: --config-only writes no weights, so it cannot be combined with --as-lora")
    if [trial is not None, knee, prefer is not None].count(True) != 1:
        raise UserError("export: choose one of --trial N, --knee and --prefer maths=0.7,french=0.3")
    preferences = None if prefer is None else parse_preferences(prefer)
    study = load_study(name, storage=storage)
    candidate = _chosen(study, trial, preferences)
    export_candidate(study, candidate, out, config_only=config_only, as_lora=as_lora)
    click.echo(f"Wrote trial {candidate.number} of study {study.name} to {out}", err=True)
    click.echo(str(out))


@click.command(short_help="Make one merge from a mergekit-format file.")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def merge(config: Path, out: Path) -> None:
    """Merge as the mergekit-format file CONFIG says and write the model to OUT, a new or empty folder.

    Relative paths in CONFIG start from the current folder, as in mergekit, or else from CONFIG's own.

    \b
    Example:
      mergefront merge ties.yaml merged
    """
    from mergefront.results.export import merge_config

    merge_config(config, out)
    click.echo(f"Wrote {out}", err=True)
    click.echo(str(out))


def parse_preferences(text: str) -> dict[str, float]:
    """``maths=0.7,french=0.3`` as a mapping; raises ``UserError``."""
    made: dict[str, float] = {}
    for part in text.split(","):
        name, separator, value = part.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            separator = ""
        if not separator or not name.strip():
            raise UserError(f"--prefer: {part.strip()!r} must be written as NAME=WEIGHT, such as maths=0.7")
        if name.strip() in made:
            raise UserError(f"--prefer: {name.strip()!r} is named twice")
        made[name.strip()] = weight
    return made


def _chosen(study: Study, trial: int | None, preferences: dict[str, float] | None) -> Candidate:
    if preferences is not None:
        return study.preferred(preferences)
    if trial is None:
        return study.knee()
    candidates = study.candidates()
    for candidate in candidates:
        if candidate.number == trial:
            return candidate
    failure = next((failure for failure in study.failures() if failure.number == trial), None)
    if failure is not None:
        raise UserError(f"trial {trial} of study {study.name!r} failed: {failure.reason}")
    front = ", ".join(str(candidate.number) for candidate in study.front())
    raise UserError(f"study {study.name!r} has no evaluated trial {trial}; on its front are: {front or 'none yet'}")
