"""Commands that evaluate: demo, check, run, resume, report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergefront.cli.boundary import terminable
from mergefront.cli.logs import echo
from mergefront.cli.options import (
    evaluations_option,
    json_option,
    launcher_options,
    log_to_option,
    numbers_option,
    print_json,
    root_option,
    storage_option,
    study_argument,
    whole_numbers,
)
from mergefront.cli.searching import finish, quiet_libraries, score_report, search_file, show_search
from mergefront.cli.session import Session
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    from mergefront.study.stored_study import Candidate, Study

STUDY_FILE = click.Path(path_type=Path)


@click.command(short_help="List everything that is wrong with a study file, before anything runs.")
@click.argument("study_file", type=STUDY_FILE)
@json_option
@click.pass_context
def check(context: click.Context, study_file: Path, as_json: bool) -> None:
    """Check STUDY_FILE and all that it names: headers of checkpoints, tokenizers, data, ranges, sampler, database.

    Loads no weights and writes nothing. Exits with 2 when there is a problem.

    \b
    Example:
      mergefront check study.yaml
    """
    from mergefront.running.forecast import memory_and_time
    from mergefront.study.check import check_study

    report = check_study(study_file)
    notes = report.notes
    if not report.problems and report.definition is not None and report.models is not None:
        notes = [*notes, *memory_and_time(report.definition, report.models)]
    if as_json:
        sound = not report.problems
        print_json({"file": str(study_file), "ok": sound, "problems": report.problems, "notes": notes})
        context.exit(2 if report.problems else 0)
    definition = report.definition_or_raise()
    for note in notes:
        echo(note)
    is_external = definition.evaluator.type == "external"
    command = f"mergefront {'create' if is_external else 'run'} {shlex.quote(str(study_file))}"
    echo(f"{study_file} is sound. Start with: {command}")


@click.command(short_help="Search as a study file says; continues an existing study.")
@click.argument("study_file", type=STUDY_FILE)
@evaluations_option
@launcher_options
@log_to_option
@click.pass_obj
def run(
    session: Session,
    study_file: Path,
    evaluations: int | None,
    launcher: str | None,
    workers: int | None,
    log_to: tuple[str, ...],
) -> None:
    """Search the merges that STUDY_FILE declares until its budget of evaluations is spent.

    A study of the same name and definition is continued. Ctrl-C keeps everything that is finished. With --launcher ray
    many workers of a cluster search; it needs the extra: pip install "mergefront[ray]".

    \b
    Examples:
      mergefront run study.yaml
      mergefront run study.yaml --evaluations 60     (more budget for a study that is done)
      mergefront run study.yaml --launcher ray --workers 8
    """
    from mergefront.running.run import Launcher
    from mergefront.tracking.trackers import checked_trackers

    trackers = checked_trackers(log_to)
    with terminable(), quiet_libraries():
        study = search_file(session, study_file, evaluations, Launcher(launcher, workers), trackers)
    finish(study)


@click.command(short_help="Which merge methods work on these models, at published coefficients, without a search.")
@click.argument("study_file", type=STUDY_FILE)
@click.option(
    "--methods", metavar="NAME,NAME,...", help="Only these beside the baselines. Default: all that can be used."
)
@click.option(
    "--subsets",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also merge N random subsets of the experts by each method: how often does it beat the base?",
)
@click.option("--report", "on_report", is_flag=True, help="Compare on the report items, which are scored then too.")
@json_option
@click.pass_obj
def compare(
    session: Session, study_file: Path, methods: str | None, subsets: int | None, on_report: bool, as_json: bool
) -> None:
    """Score the base, each expert and every merge method of STUDY_FILE's models at published coefficients.

    Nothing is searched. The evaluations are trials of the study NAME/compare in the same database: what is finished is
    kept, and the same command goes on. 'mergefront run' of the study evaluates none of them again.

    \b
    Examples:
      mergefront compare study.yaml
      mergefront compare study.yaml --methods task_arithmetic,ties,isotropic --subsets 20
    """
    from mergefront.cli.comparison_table import print_comparison
    from mergefront.cli.searching import show_search
    from mergefront.running.compare import ready_to_compare
    from mergefront.running.run import IN_THIS_PROCESS
    from mergefront.study.check import check_study

    with terminable(), quiet_libraries():
        with ready_to_compare(check_study(study_file), methods, subsets or 0) as comparison:
            if not comparison.is_done:
                show_search(session, comparison.ready, IN_THIS_PROCESS)
        if on_report:
            score_report(session, comparison.study, comparison.of_report())
    found = comparison.result("report" if on_report else "search")
    if as_json:
        print_json(found.to_json())
    else:
        print_comparison(found, comparison.study)


@click.command(short_help="Continue a stored study; needs only its name.")
@study_argument
@storage_option
@root_option
@evaluations_option
@launcher_options
@log_to_option
@click.pass_obj
def resume(
    session: Session,
    name: str,
    storage: str,
    root: Path | None,
    evaluations: int | None,
    launcher: str | None,
    workers: int | None,
    log_to: tuple[str, ...],
) -> None:
    """Continue study NAME up to its budget, or up to --evaluations.

    \b
    Examples:
      mergefront resume skills
      mergefront resume skills --evaluations 60 --storage sqlite:///examples/smollm/mergefront.db
    """
    from mergefront.running.run import Launcher
    from mergefront.study.ready import ready_to_resume
    from mergefront.study.stored_study import load_study
    from mergefront.tracking.log_to import logged_to
    from mergefront.tracking.trackers import checked_trackers

    where, trackers = Launcher(launcher, workers), checked_trackers(log_to)
    with terminable(), quiet_libraries():
        study = load_study(name, storage=storage, root=root)
        with ready_to_resume(study, evaluations=evaluations, with_evaluator=launcher is None) as ready:
            if ready is not None:
                study = show_search(session, ready, where, trackers)
            else:  # what the trackers lack of a search that is done
                with logged_to(study, trackers):
                    pass
    finish(study)


@click.command(short_help="Score the front and the anchors on items that the search never saw.")
@study_argument
@storage_option
@root_option
@click.option("--trials", metavar="N,N,...", callback=whole_numbers, help="Only these members of the front.")
@click.option("--distinct", is_flag=True, help="Only members that are better than each other one beyond noise.")
@numbers_option("--prefer", "NAME=WEIGHT,...", "Only the member for these weights of the objectives.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Also write everything as one self-contained HTML page.",
)
@click.option(
    "--twin",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Score what 'export --twin' wrote to DIR: alone, with the experts' LoRAs, with the router.",
)
@json_option
@click.pass_obj
def report(
    session: Session,
    name: str,
    storage: str,
    root: Path | None,
    trials: list[int] | None,
    distinct: bool,
    prefer: dict[str, float] | None,
    out: Path | None,
    twin: Path | None,
    as_json: bool,
) -> None:
    """Score the front of study NAME and its anchors on the report items, and show both sets of scores.

    The report items are those that the tasks keep apart (report, report_fraction). There may be more of them than the
    search asked, and what that takes is said first. --trials, --distinct and --prefer, alone or together, choose which
    merges of the front are scored. The anchors are always scored, since merges are compared with them. What is scored
    already is not scored again; the sampler never sees these scores.

    \b
    Examples:
      mergefront report skills
      mergefront report skills --distinct --prefer maths=0.7,french=0.3
      mergefront report skills --out report.html
      mergefront report skills --twin twin
    """
    from mergefront.cli.tables import print_front, print_twin
    from mergefront.results.report.contents import report_json
    from mergefront.results.report.page import checked_page, write_report
    from mergefront.study.stored_study import load_study

    with terminable(), quiet_libraries():
        study = load_study(name, storage=storage, root=root)
        if out is not None:
            checked_page(out)  # said before hours of scoring
        if out is None or study.definition.evaluator.tasks:
            score_report(session, study, _chosen(study, trials, distinct, prefer))
        if out is not None:
            write_report(study, out)
            echo(f"Wrote {out}", err=True)
        if twin is not None:
            from mergefront.results.twin.scores import twin_scores

            twins = twin_scores(study, twin)
    if as_json:
        print_json(report_json(study) | ({} if twin is None else {"twin": twins.to_json()}))
        return
    print_front(study)
    if twin is not None:
        print_twin(twins)


def _chosen(
    study: Study, trials: list[int] | None, distinct: bool, prefer: dict[str, float] | None
) -> list[Candidate] | None:
    """The members of the front that were asked for; None for all of them."""
    if trials is None and not distinct and prefer is None:
        return None
    front = {candidate.number: candidate for candidate in study.front()}
    for number in trials or ():
        if number not in front:
            known = ", ".join(map(str, front)) or "none yet"
            raise UserError(f"--trials: trial {number} is not on the front of study {study.name!r}; on it are: {known}")
    chosen = [front[number] for number in trials or ()]
    chosen += study.distinct_front() if distinct else []
    chosen += [study.preferred(prefer)] if prefer is not None else []
    return chosen
