"""Commands that write models: export, merge."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from mergefront.cli.logs import echo
from mergefront.cli.options import choice_options, storage_option, study_argument
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    from mergefront.results.suggestion import Choice


@click.command(short_help="Write one merge as a model: weights, tokenizer, mergekit YAML, model card.")
@study_argument
@storage_option
@choice_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; new or empty.")
@click.option(
    "--push-to", metavar="ORG/NAME", help="Upload the folder to the Hugging Face Hub, as a private repository."
)
@click.option("--public", is_flag=True, help="With --push-to: as a public one.")
@click.option("--config-only", is_flag=True, help="No weights: mergekit YAML, recipe and model card only.")
@click.option(
    "--as-lora",
    is_flag=True,
    help="A sum of LoRAs, or a merge by a lora_ method, as one PEFT LoRA.",
)
@click.option(
    "--twin",
    type=click.IntRange(min=1),
    metavar="RANK",
    help="Also what it lost of each expert, as a LoRA; and a router.",
)
@click.option("--unchecked", is_flag=True, help="Do not compare what was written with the merge that was scored.")
def export(
    name: str,
    storage: str,
    choice: Choice,
    out: Path | None,
    push_to: str | None,
    public: bool,
    config_only: bool,
    as_lora: bool,
    twin: int | None,
    unchecked: bool,
) -> None:
    """Write one merge of study NAME to a folder, with a model card that says how it was found.

    Without a choice it is the merge that `front` suggests. That one has the best weakest objective of those members of
    the front that no anchor beats and that lose to the base in nothing beyond noise.

    The merge is then made once more as it was scored, and compared with the folder tensor by tensor.

    \b
    Examples:
      mergefront export skills --out merged
      mergefront export skills --trial 17 --out merged --config-only
      mergefront export skills --prefer maths=0.7,french=0.3 --out merged
      mergefront export skills --push-to me/skills-merged
      mergefront export skills --twin 16 --out twin
    """
    from mergefront.adapters.hub.names import repository_name
    from mergefront.adapters.hub.upload import check_push, push
    from mergefront.results.export import export_candidate
    from mergefront.results.export_check import check_export
    from mergefront.results.suggestion import warnings
    from mergefront.study.stored_study import load_study

    if config_only and as_lora:
        raise UserError("export: --config-only writes no weights, so it cannot be combined with --as-lora")
    if twin is not None and (config_only or as_lora):
        raise UserError("export: --twin writes LoRAs beside a whole merge; leave --config-only and --as-lora out")
    study = load_study(name, storage=storage)
    candidate = choice.of(study)
    if out is None and push_to is None:
        raise UserError("export: name a folder to write with --out, or a repository with --push-to")
    repository = None if push_to is None else repository_name(push_to)
    if repository is not None:
        check_push(repository, public=public)
    with nullcontext(str(out)) if out is not None else TemporaryDirectory(prefix="mergefront-export-") as folder:
        written = Path(folder)
        export_candidate(study, candidate, written, config_only=config_only, as_lora=as_lora, twin=twin)
        if out is not None:
            echo(f"Wrote trial {candidate.number} of study {study.name} to {out}", err=True)
        for warning in warnings(study, candidate):
            echo(warning, err=True)
        if not (unchecked or config_only or as_lora):
            echo(check_export(study, candidate, written), err=True)
        if repository is not None:
            message = f"Trial {candidate.number} of study {study.name}"
            echo(push(written, repository, public=public, message=message), err=out is not None)
    if out is not None:
        echo(str(out))


@click.command(short_help="Make one merge from a mergekit-format file.")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--allow", multiple=True, metavar="KEY", help="A key of config.json in which the models may differ.")
def merge(config: Path, out: Path, allow: tuple[str, ...]) -> None:
    """Merge as the mergekit-format file CONFIG says and write the model to OUT, a new or empty folder.

    Relative paths in CONFIG start from the current folder, as in mergekit, or else from CONFIG's own.

    Models that are no fine-tunes of one model are refused; --allow names differences that are harmless.

    \b
    Examples:
      mergefront merge ties.yaml merged
      mergefront merge ties.yaml merged --allow rope_theta --allow model_type
    """
    from mergefront.results.export import merge_config

    merge_config(config, out, allow)
    echo(f"Wrote {out}", err=True)
    echo(str(out))
