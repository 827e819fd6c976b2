"""``mergefront demo``: the main job from beginning to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergefront.cli.boundary import terminable
from mergefront.cli.searching import finish, quiet_libraries, say, score_report, search_file
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    from mergefront.cli.session import Session
    from mergefront.study.stored_study import Study


def run_demo(session: Session, directory: Path, seed: int) -> None:
    """Build the example in ``directory``, search it, score the front on report items, show and keep the results."""
    from mergefront.demo import write_demo
    from mergefront.demo.threads import one_thread
    from mergefront.running.run import Launcher

    say(f"A tiny base model, experts trained from it, and a search over their merges, in {directory}.")
    with one_thread():
        study_file = write_demo(directory, seed=seed, progress=say)
        study = search_file(session, study_file, None, Launcher())
        score_report(session, study)
    written = _write_results(study, directory)
    finish(study)
    say(f"\nWritten: {', '.join(str(path) for path in written)}.\nThe study file is {study_file}.")


def _write_results(study: Study, directory: Path) -> list[Path]:
    from mergefront.results.plots.front import save_front

    written = [directory / "front.json"]
    written[0].write_text(json.dumps(study.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        written.append(save_front(study, directory / "front.png"))
    except UserError as error:  # without the extra the search was still worth it
        say(f"No plot: {error}")
    return written


@click.command(short_help="Run the whole thing on a tiny built-in example, offline.")
@click.option(
    "--out",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("mergefront-demo"),
    show_default=True,
    help="Folder for models, data, database, plot and front.json.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of models, data and search.")
@click.pass_obj
def demo(session: Session, directory: Path, seed: int) -> None:
    """Build a tiny base model and three experts, search their merges, and show what came out.

    Needs no network and no GPU and takes about two minutes. DIR/mergefront.db holds the study "demo"
    afterwards, DIR/front.png and DIR/front.json the front. Run again, it continues where it stopped.
    """
    with terminable(), quiet_libraries():
        run_demo(session, directory, seed)
