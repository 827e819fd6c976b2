"""Commands for many processes and outside harnesses (worker, create, ask, tell) and for a study's life (rename, copy,
delete)."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from mergefront.cli.boundary import on_sigterm
from mergefront.cli.logs import echo
from mergefront.cli.options import (
    evaluations_option,
    json_option,
    named_numbers,
    print_json,
    root_option,
    storage_option,
    study_argument,
)
from mergefront.cli.session import Session, shown_storage, storage_argument
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.foreign_text import one_line


@click.command(short_help="One more process on a stored study, here or on another machine.")
@study_argument
@storage_option
@root_option
@click.option("--device", metavar="DEVICE", help="Where this worker merges and scores, such as cuda:1.")
@click.pass_obj
def worker(session: Session, name: str, storage: str, root: Path | None, device: str | None) -> None:
    """Work on study NAME until its budget is spent; any number of workers share it and never overshoot it.

    What a worker leaves unfinished when it dies is taken over by another. SIGTERM drains: the evaluation under
    way is finished first.

    \b
    Example:
      mergefront worker skills --storage postgresql+psycopg://me@db/merges --device cuda:1
    """
    from mergefront.cli.progress import search_progress
    from mergefront.running.worker import work
    from mergefront.study.rules import changes_since
    from mergefront.study.stored_study import load_study

    study = load_study(name, storage=storage, root=root)
    for note in changes_since(name, study.record.definition, study.root):
        session.say(note)
    with draining(session) as should_stop, search_progress(session, study) as (on_trial_end, on_trial_start):
        study = work(
            study,
            device=device,
            on_trial_end=on_trial_end,
            on_trial_start=on_trial_start,
            should_stop=should_stop,
        )
    session.say(f"{study.finished_count()} of {study.record.evaluations} evaluations are finished.")


@contextmanager
def draining(session: Session) -> Iterator[Callable[[], bool]]:
    """While entered, SIGTERM only asks to stop: the yielded function then returns True."""
    asked = False

    def stop() -> None:
        nonlocal asked
        asked = True
        session.say("Stopping after the evaluation under way.")

    with on_sigterm(stop):
        yield lambda: asked


@click.command(short_help="Store a study that an outside harness, or workers, will evaluate.")
@click.argument("study_file", type=click.Path(path_type=Path))
@evaluations_option
@click.pass_obj
def create(session: Session, study_file: Path, evaluations: int | None) -> None:
    """Check STUDY_FILE and store its study; nothing is evaluated. Prints the study's name.

    A stored study of the same definition stays as it is, with the budget that the file or --evaluations says. Another
    one of this name is refused.

    \b
    Example (with backend: {type: external} in study.yaml):
      mergefront create study.yaml
      mergefront ask skills > merge.yaml
    """
    from mergefront.study.check import check_study
    from mergefront.study.ready import store

    ready = store(check_study(study_file, evaluations))
    study = ready.study
    for note in ready.notes:
        session.say(note)
    following = "ask" if study.definition.evaluator.type == "external" else "worker"
    where = storage_argument(study.database.url)
    session.say(f"{study.finished_count()} of {study.record.evaluations} evaluations are finished. Next:")
    session.say(f"  mergefront {following} {shlex.quote(study.name)}{where}")
    echo(study.name)


@click.command(short_help="The next recipe of a study, for an outside harness.")
@study_argument
@storage_option
@root_option
@click.option(
    "--lease",
    type=float,
    default=24 * 3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Without scores by then, the same trial is handed out again.",
)
@json_option
def ask(name: str, storage: str, root: Path | None, lease: float, as_json: bool) -> None:
    """Print the next recipe of study NAME as mergekit YAML; its trial number stands in the first line.

    Exits with 0 and prints nothing when the budget is spent or handed out. Models that are here are named by absolute
    paths, LoRAs as mergekit reads them (MODEL+LORA).

    \b
    Example:
      mergefront ask skills > merge.yaml
      mergekit-yaml merge.yaml merged            (or: mergefront merge merge.yaml merged)
      mergefront tell skills 7 maths=0.61 french=0.44
    """
    from mergefront.results.export import yaml_text
    from mergefront.study.stored_study import load_study

    asked = load_study(name, storage=storage, root=root).ask(lease)
    if asked is None:
        if as_json:
            print_json(None)
        echo("Nothing to do: the budget is spent or handed out.", err=True)
        return
    if as_json:
        print_json(asked.to_json())
        return
    echo(f"# trial {asked.trial}" + (f" ({one_line(asked.anchor)})" if asked.anchor else ""))
    echo(yaml_text(asked.mergekit), nl=False)


@click.command(short_help="The scores of an asked trial.")
@study_argument
@click.argument("trial", type=click.IntRange(min=0))
@click.argument("scores", nargs=-1, callback=named_numbers)
@click.option(
    "--standard-error",
    "errors",
    multiple=True,
    metavar="OBJECTIVE=NUMBER",
    callback=named_numbers,
    help="Noise of one score; the sampler takes it into account.",
)
@click.option(
    "--items",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help='Scores item by item, as JSON: {"maths": {"item-1": 1, "item-2": 0}}; - reads stdin.',
)
@click.option("--failed", metavar="REASON", help="The recipe could not be scored.")
@storage_option
@root_option
def tell(
    name: str,
    trial: int,
    scores: dict[str, float],
    errors: dict[str, float],
    items: IO[str] | None,
    failed: str | None,
    storage: str,
    root: Path | None,
) -> None:
    """Tell what TRIAL of study NAME scored, one SCORES argument OBJECTIVE=NUMBER per objective.

    An objective with --items needs no score: it is their mean. The same scores twice change nothing. Other scores for a
    finished trial are refused.
    """
    from mergefront.study.stored_study import load_study

    if failed is not None and (scores or errors or items):
        raise click.UsageError("--failed excludes scores")
    if failed is None and not (scores or items):
        raise click.UsageError("give a score for every objective, such as maths=0.61, or --items, or --failed REASON")
    by_item = {} if items is None else _read_items(items)
    study = load_study(name, storage=storage, root=root)
    if failed is not None:
        study.tell_failed(trial, failed)
    else:
        study.tell(trial, scores, standard_errors=errors, items=by_item)


def _read_items(file: IO[str]) -> dict[str, dict[str, float]]:
    """Scores by item by objective; raises ``UserError`` for another file than that."""
    try:
        content = json.load(file, object_pairs_hook=_once_each)
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file.name}: not readable as JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(scored, dict) for scored in content.values()):
        raise UserError(f'{file.name}: it must be a mapping such as {{"maths": {{"item-1": 1, "item-2": 0}}}}')
    return content


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


@click.command(short_help="Give a study another name.")
@study_argument
@click.argument("new_name")
@storage_option
def rename(name: str, new_name: str, storage: str) -> None:
    """Give study NAME, with its comparison, the name NEW_NAME. Workers that are under way are not disturbed."""
    from mergefront.storage.database import Database
    from mergefront.storage.transfer import rename as rename_study

    rename_study(Database(storage, create=False), name, new_name)


@click.command(short_help="Copy a study, also to another database or one portable file.")
@study_argument
@click.argument("new_name", required=False)
@click.option("--to", metavar="URL", help="Database to copy to; it is made if there is none. Default: the same one.")
@storage_option
def copy(name: str, new_name: str | None, to: str | None, storage: str) -> None:
    """Copy study NAME with every trial, evaluation and item score; trial numbers stay.

    \b
    Examples:
      mergefront copy skills skills-before-the-talk
      mergefront copy skills --to sqlite:///skills.db                     (one portable file)
      mergefront copy skills --storage skills.db --to postgresql+psycopg://me@db/merges
    """
    from mergefront.storage.database import Database
    from mergefront.study.stored_study import load_study

    if to is None and new_name is None:
        raise click.UsageError("give the copy a name, or another database with --to")
    study = load_study(name, storage=storage)
    target = study.database if to is None else Database(to)
    made = study.copy(target, new_name)
    # Closed, an SQLite database is one file again, fit to be sent around.
    target.close()
    echo(f"Study {made.name} is now in {shown_storage(target.url)}.", err=True)


@click.command(short_help="Bring a database of an older version up to date.")
@storage_option
def upgrade(storage: str) -> None:
    """Bring the tables of an older version up to date, after a copy of them was put aside.

    An SQLite file is upgraded whenever it is opened. On a server it takes this command. Run it when no worker of the
    older version is at work any more.

    \b
    Example:
      mergefront upgrade --storage postgresql+psycopg://me@db/merges
    """
    from mergefront.storage.database import Database

    kept = Database(storage, create=False, may_upgrade=True).upgraded
    echo("The tables are up to date." if kept is None else f"Upgraded; a copy of the old tables: {kept}", err=True)


@click.command(short_help="Delete a study with all its evaluations.")
@study_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_option
def delete(name: str, yes: bool, storage: str) -> None:
    """Delete study NAME with all its trials and evaluations, and its comparison, after asking."""
    from mergefront.storage.studies import with_comparison
    from mergefront.storage.transfer import delete as delete_study
    from mergefront.study.stored_study import Study, load_study

    study = load_study(name, storage=storage)
    if not yes:
        where = shown_storage(study.database.url)
        gone = [Study(study.database, record) for record in with_comparison(study.database, study.record)]
        named = " and ".join(f"{shlex.quote(one.name)} with {one.finished_count()} evaluations" for one in gone)
        click.confirm(
            f"Delete study {named} from {where}?",
            abort=True,
            err=True,
        )
    delete_study(study.database, name)
