"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from mergefront.cli.logs import echo
from mergefront.cli.session import STORAGE_VARIABLE
from mergefront.optimizer.errors import UserError
from mergefront.storage import DEFAULT_STORAGE

Command = TypeVar("Command", bound=Callable[..., Any])


def _names_like(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    from mergefront.storage.known_names import study_names

    return [name for name in study_names(context.params["storage"]) if name.startswith(begun)]


def _trials_like(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    from mergefront.storage.known_names import trial_numbers

    # click leaves arguments unread where the option that is completed has no value yet.
    study = context.params.get("name") or next(iter(context.args), "")
    return [number for number in trial_numbers(context.params["storage"], study) if number.startswith(begun)]


study_argument = click.argument("name", shell_complete=_names_like)


def _checkpointed(context: click.Context, _parameter: click.Parameter, url: str) -> str:
    """The URL as it is; when the command ends, an SQLite file holds all that was committed."""

    def end() -> None:
        from mergefront.storage.database import checkpoint

        with suppress(UserError):  # the command has said what is wrong with the URL
            checkpoint(url)

    if not context.resilient_parsing:  # a shell completes a command, and nothing is done
        context.call_on_close(end)
    return url


storage_option = click.option(
    "--storage",
    callback=_checkpointed,
    metavar="URL",
    envvar=STORAGE_VARIABLE,
    default=DEFAULT_STORAGE,
    show_default=True,
    show_envvar=True,
    help="Database of studies: a URL that SQLAlchemy understands, or the path of an SQLite file.",
)
root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the study file, where the study's own is not on this machine.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
evaluations_option = click.option(
    "--evaluations",
    type=click.IntRange(min=1),
    metavar="N",
    help="The study's whole budget, anchors and finished evaluations included.",
)


log_to_option = click.option(
    "--log-to",
    type=click.Choice(["mlflow", "wandb"]),
    multiple=True,
    help="Also write trials and the front to this tracker as they come; resuming continues the same run.",
)


def numbers_option(name: str, metavar: str, help: str) -> Callable[[Command], Command]:
    """An option such as ``--prefer maths=0.7,french=0.3``."""
    return click.option(name, metavar=metavar, callback=named_numbers, help=help)


def choice_options(command: Command) -> Command:
    """``--trial``, ``--suggested``, ``--knee``, ``--start-point`` and ``--prefer``: a merge of a study, passed as
    ``choice``."""

    @wraps(command)
    def chosen(
        trial: int | None,
        suggested: bool,
        knee: bool,
        prefer: dict[str, float] | None,
        start_point: str | None,
        **others: Any,
    ) -> Any:
        from mergefront.results.suggestion import Choice

        return command(choice=Choice(trial, suggested, knee, prefer, start_point), **others)

    for option in (
        numbers_option("--prefer", "NAME=WEIGHT,...", "The front member for these weights of the objectives."),
        click.option("--start-point", metavar="NAME", help="What a search began with, such as aligned."),
        click.option(
            "--knee",
            is_flag=True,
            help="The front's knee: the largest sum of the objectives, each scaled to the front.",
        ),
        click.option("--suggested", is_flag=True, help="The merge that is suggested; so it is without a choice."),
        click.option(
            "--trial", type=click.IntRange(min=0), metavar="N", shell_complete=_trials_like, help="This trial."
        ),
    ):
        option(chosen)
    return chosen  # type: ignore[return-value]


def launcher_options(command: Command) -> Command:
    """``--launcher NAME --workers N``: search with many processes at once."""
    launcher = click.option(
        "--launcher", type=click.Choice(["ray"]), help="Search with workers on a Ray cluster, not in this process."
    )
    workers = click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="How many of them. Default: one per GPU, or per CPU where there are no GPUs.",
    )
    return launcher(workers(command))


def named_numbers(
    _context: click.Context, _parameter: click.Parameter, given: str | tuple[str, ...] | None
) -> dict[str, float] | None:
    """``maths=0.7,french=0.3``, or such parts one by one, as a mapping."""
    if given is None:
        return None
    found: dict[str, float] = {}
    for part in given.split(",") if isinstance(given, str) else given:
        name, _, value = (side.strip() for side in part.rpartition("="))
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"{part.strip()!r} must be written as NAME=NUMBER, such as maths=0.61")
    return found


def whole_numbers(_context: click.Context, _parameter: click.Parameter, given: str | None) -> list[int] | None:
    """``3,7,12`` as a list."""
    try:
        return None if given is None else [int(part) for part in given.split(",")]
    except ValueError:
        raise click.BadParameter(f"{given!r} must be written as N,N,..., such as 3,7") from None


def print_json(value: Any) -> None:
    """One JSON value on stdout; strict JSON (no NaN)."""
    echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
