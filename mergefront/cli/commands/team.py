"""Commands for many processes and outside harnesses: worker, ask, tell; and a study's life: rename, copy, delete."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from mergefront.cli.boundary import on_sigterm
from mergefront.cli.logs import echo
from mergefront.cli.options import json_option, named_numbers, print_json, root_option, storage_option
from mergefront.cli.session import Session, shown_storage


@click.command(short_help="One more process on a stored study, here or on another machine.")
@click.argument("name")
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


@click.command(short_help="The next recipe of a study, for an outside harness.")
@click.argument("name")
@storage_option
@click.option(
    "--lease",
    type=float,
    default=24 * 3600.0,
    show_default=True,
    metavar="SECONDS",
    help="When nothing was told by then, the same trial is handed out again.",
)
@json_option
def ask(name: str, storage: str, lease: float, as_json: bool) -> None:
    """Print the next recipe of study NAME as mergekit YAML; its trial number stands in the first line.

    Exits with 0 and prints nothing when the budget is spent or handed out. Relative paths in the YAML start from the
    study's folder.

    \b
    Example:
      mergefront ask skills > config.yaml
      mergefront tell skills 7 maths=0.61 french=0.44
    """
    import yaml

    from mergefront.running.ask_tell import ask as ask_for

    asked = ask_for(name, storage=storage, lease=lease)
    if asked is None:
        if as_json:
            print_json(None)
        echo("Nothing to do: the budget is spent or handed out.", err=True)
        return
    if as_json:
        print_json(asked.to_json())
        return
    echo(f"# trial {asked.trial}" + (f" ({asked.anchor})" if asked.anchor else ""))
    echo(yaml.safe_dump(asked.recipe.to_mergekit(), sort_keys=False), nl=False)


@click.command(short_help="The scores of an asked trial.")
@click.argument("name")
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
@click.option("--failed", metavar="REASON", help="The recipe could not be scored.")
@storage_option
def tell(
    name: str, trial: int, scores: dict[str, float], errors: dict[str, float], failed: str | None, storage: str
) -> None:
    """Tell what TRIAL of study NAME scored, one SCORES argument OBJECTIVE=NUMBER per objective.

    Telling the same twice changes nothing; other scores than those told before are refused.
    """
    from mergefront.running.ask_tell import tell as tell_scores
    from mergefront.running.ask_tell import tell_failed

    if failed is not None:
        if scores or errors:
            raise click.UsageError("--failed excludes scores")
        tell_failed(name, trial, failed, storage=storage)
    elif not scores:
        raise click.UsageError("give a score for every objective, such as maths=0.61, or --failed REASON")
    else:
        tell_scores(name, trial, scores, standard_errors=errors, storage=storage)


@click.command(short_help="Give a study another name.")
@click.argument("name")
@click.argument("new_name")
@storage_option
def rename(name: str, new_name: str, storage: str) -> None:
    """Give study NAME the name NEW_NAME. Workers that are under way are not disturbed."""
    from mergefront.storage.database import Database
    from mergefront.storage.transfer import rename as rename_study

    rename_study(Database(storage, create=False), name, new_name)


@click.command(short_help="Copy a study, also to another database or one portable file.")
@click.argument("name")
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

    An SQLite file is upgraded whenever it is opened; on a server it takes this command, when no worker of the
    older version is at work any more.

    \b
    Example:
      mergefront upgrade --storage postgresql+psycopg://me@db/merges
    """
    from mergefront.storage.database import Database

    kept = Database(storage, create=False, may_upgrade=True).upgraded
    echo("The tables are up to date." if kept is None else f"Upgraded; a copy of the old tables: {kept}", err=True)


@click.command(short_help="Delete a study with all its evaluations.")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_option
def delete(name: str, yes: bool, storage: str) -> None:
    """Delete study NAME with all its trials and evaluations, after asking."""
    from mergefront.storage.transfer import delete as delete_study
    from mergefront.study.stored_study import load_study

    study = load_study(name, storage=storage)
    if not yes:
        where = shown_storage(study.database.url)
        click.confirm(
            f"Delete study {shlex.quote(name)} with {study.finished_count()} evaluations from {where}?",
            abort=True,
            err=True,
        )
    delete_study(study.database, name)
