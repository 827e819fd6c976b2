"""Commands that read studies: studies, status, front, dashboard."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergefront.cli.logs import echo
from mergefront.cli.options import json_option, numbers_option, print_json, storage_option, study_argument
from mergefront.cli.session import shown_storage, storage_argument

if TYPE_CHECKING:
    from mergefront.study.stored_study import Candidate, Study


@click.command(short_help="List the studies of a database.")
@storage_option
@json_option
def studies(storage: str, as_json: bool) -> None:
    """List every study with its evaluations, objectives, and its hypervolume or best score.

    \b
    Example:
      mergefront studies --storage sqlite:///mergefront-demo/mergefront.db
    """
    from mergefront.cli.tables import plain_table
    from mergefront.formatting import console, heading
    from mergefront.storage.database import Database
    from mergefront.storage.studies import all_studies
    from mergefront.study.stored_study import Study

    database = Database(storage, create=False)
    found = [Study(database, record) for record in all_studies(database)]
    if as_json:
        print_json([_study_row(study) for study in found])
        return
    if not found:
        echo(f"There are no studies in {shown_storage(database.url)}.", err=True)
        return
    rows = [
        [
            study.name,
            f"{study.finished_count()}/{study.record.evaluations}",
            ", ".join(heading(objective) for objective in study.objectives),
            "given merges" if study.definition.compares else ", ".join(method.name for method in study.space.methods),
            "" if study.definition.compares else study.definition.sampler,
            _result(study),
            f"{study.record.created_at:%Y-%m-%d %H:%M}",
        ]
        for study in found
    ]
    console().print(
        plain_table(["study", "evaluations", "objectives", "method", "sampler", "result", "created (UTC)"], rows)
    )


@click.command(short_help="How far a study is, what failed and why, and how to resume it.")
@study_argument
@storage_option
@json_option
def status(name: str, storage: str, as_json: bool) -> None:
    """Show how far study NAME is: evaluations, failures by reason, hypervolume, best scores, speed.

    \b
    Example:
      mergefront status skills
    """
    from mergefront.formatting import amount, duration, heading, hypervolume, number, trial, trials, with_interval
    from mergefront.optimizer.scores.outcomes import outcome_lines
    from mergefront.optimizer.scores.pareto import Hypervolume
    from mergefront.study.stored_study import load_study

    study = load_study(name, storage=storage).snapshot()
    facts = _status(study)
    if as_json:
        print_json(facts)
        return
    done = facts["evaluations"]
    lines = [
        f"Study {study.name} in {shown_storage(study.database.url)}",
        f"  evaluations   {done['done']} of {done['budget']}"
        + (f", {done['failed']} of them failed" if done["failed"] else "")
        + (f", {done['running']} under way or abandoned" if done["running"] else ""),
    ]
    if "hypervolume" in facts:
        measured = Hypervolume(facts["hypervolume"], facts.get("hypervolume_error", 0.0))
        lines.append(f"  hypervolume   {hypervolume(measured)}")
    if facts["seconds_per_evaluation"] is not None:
        lines.append(f"  speed         {duration(facts['seconds_per_evaluation'])} per evaluation")
    if facts["per_hour"] is not None:
        more = f", about {duration(facts['seconds_left'])} left" if facts["seconds_left"] else ""
        lines.append(f"  throughput    {number(facts['per_hour'])} evaluations per hour{more}")
    if any(facts["spent"].values()):
        spent = ", ".join(amount(kind, value) for kind, value in facts["spent"].items())
        rest = ", ".join(amount(kind, value) for kind, value in facts["cost_left"].items())
        lines.append(f"  spent         {spent}" + (f"; about {rest} to come" if rest else ""))
    lines += [f"  budget        {line}" for line in facts["budgets"]]
    if facts["report"] is not None and facts["report"]["scored"]:
        reported = facts["report"]
        costs = "".join(f", {amount(kind, value)}" for kind, value in reported["spent"].items() if value)
        more = f", {reported['left']} left" if reported["left"] else ""
        lines.append(
            f"  report items  {reported['scored']} candidates scored in {duration(reported['seconds'])}{costs}{more}"
        )
    lines += [f"  items         {line}" for line in outcome_lines(study.own_evaluations())]
    for entry in facts["workers"]:
        since = "" if entry["seconds"] is None else f", since {duration(entry['seconds'])}"
        at = "starting" if entry["trial"] is None else trial(entry["trial"])
        state = " (gone; its trial is taken over)" if entry["abandoned"] else ""
        lines.append(f"  worker        {entry['name']}: {at}{since}{state}")
    for index, objective in enumerate(study.objectives):
        best = facts["best"].get(objective.name)
        if best is not None:
            who = trial(best["trial"], best["anchor"])
            label = "best (95 %)" if index == 0 else ""
            found = with_interval(best["score"], best["interval"])
            lines.append(f"  {label:<12}  {heading(objective)} {found}, {who}")
    if facts["failures"]:
        lines.append("  failures")
        lines += [
            f"    {entry['count']} x {entry['reason']} ({trials(entry['trials'])})" for entry in facts["failures"]
        ]
    if facts["stopped"] is not None and facts["stopped"]["cause"] != "budget":
        lines.append(f"  stopped       {facts['stopped']['reason']}")
    lines.append("  to continue   " + facts["resume"] if facts["resume"] else f"  {_more(study)}")
    for line in lines:
        echo(line)


def _mixtures(study: Study) -> dict[int, dict[str, float]]:
    """The data mixture that each merge of the front stands for, by trial; of one objective, those of its history."""
    from mergefront.optimizer.errors import UserError

    refused = study.space.no_mixtures
    if refused is not None:
        raise UserError(f"--mixture: study {study.name!r} has no data mixtures: {refused}")
    shown = study.history() if study.has_one_objective else study.front()
    found = {candidate.number: study.space.mixture(candidate.recipe) for candidate in shown}
    return {number: percent for number, percent in found.items() if percent is not None}


@click.command(short_help="The merges worth having, against the anchors.")
@study_argument
@storage_option
@json_option
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also draw the front: FILE.png, or FILE.html to look at in a browser.",
)
@click.option("--distinct", is_flag=True, help="Which merges are better than each other one in something beyond noise.")
@click.option("--epsilon", type=float, metavar="E", help="The same, by more than E of the anchors' range.")
@numbers_option("--prefer", "NAME=WEIGHT,...", "The member for these weights of the objectives.")
@numbers_option("--direction", "NAME=SHARE,...", "The member farthest from the worst values this way.")
@click.option("--mixture", is_flag=True, help="The weights as proportions of the experts' data, in percent.")
def front(
    name: str,
    storage: str,
    as_json: bool,
    plot: Path | None,
    distinct: bool,
    epsilon: float | None,
    prefer: dict[str, float] | None,
    direction: dict[str, float] | None,
    mixture: bool,
) -> None:
    """Show the front of study NAME against the anchors, and which merges beat them beyond noise.

    \b
    Examples:
      mergefront front skills
      mergefront front skills --plot front.html
      mergefront front skills --json | jq '.front[].scores'
      mergefront front skills --distinct --prefer maths=0.7,french=0.3
    """
    from mergefront.cli.tables import print_front, step_lines
    from mergefront.formatting import console, trial
    from mergefront.study.stored_study import load_study

    study = load_study(name, storage=storage).snapshot()
    mixtures = _mixtures(study) if mixture else None
    if plot is not None:
        from mergefront.results.plots.front import save_front

        save_front(study, plot)
        echo(f"Wrote {plot}", err=True)
    chosen: dict[str, list[Candidate]] = {}
    if distinct or epsilon is not None:
        chosen["distinct"] = study.distinct_front(epsilon)
    if prefer is not None:
        chosen["preferred"] = [study.preferred(prefer)]
    if direction is not None:
        chosen["along"] = [study.along(direction)]
    if as_json:
        numbers = {what: [one.number for one in members] for what, members in chosen.items()}
        print_json(
            study.to_json()
            | {what: found if what == "distinct" else found[0] for what, found in numbers.items()}
            | ({} if mixtures is None else {"mixtures": [{"trial": n, "percent": p} for n, p in mixtures.items()]})
        )
        return
    print_front(study)
    if mixtures is not None:
        from mergefront.cli.tables import plain_table

        echo("\nData mixtures: each expert's share in percent")
        rows = [[str(number), *(f"{share:.1f}" for share in percent.values())] for number, percent in mixtures.items()]
        console().print(plain_table(["trial", *study.space.models], rows))
    for what, members in chosen.items():
        echo(f"{what.capitalize()}: {', '.join(trial(one.number, one.anchor) for one in members)}")
    screen = console()
    if screen.is_terminal and (steps := step_lines(study, screen.width)):
        echo("\n".join(["", "Next:", *steps]))


@click.command(short_help="Watch studies in a browser (optuna-dashboard).")
@storage_option
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any free port.")
def dashboard(storage: str, port: int) -> None:
    """Serve optuna-dashboard on the database of studies, to this machine only. Ctrl-C ends it.

    It needs the extra: pip install "mergefront[dashboard]".
    """
    from mergefront.cli.boundary import terminable
    from mergefront.serving.dashboard import serve
    from mergefront.storage.database import Database

    database = Database(storage, create=False)
    where = shown_storage(database.url)
    with terminable():
        serve(database, port, lambda address: echo(f"Studies of {where}: {address} (Ctrl-C ends)", err=True))
    echo("", err=True)


def _more(study: Study) -> str:
    """How a study whose budget is spent goes on."""
    if study.definition.compares:
        return "all merges are scored; the table, and more methods: mergefront compare STUDY_FILE"
    command = f"mergefront resume {shlex.quote(study.name)}{storage_argument(study.database.url)}"
    if study.definition.evaluator.type == "external":
        command = "mergefront create STUDY_FILE"
    return f"the budget is spent; more: {command} --evaluations N"


def _result(study: Study) -> str:
    from mergefront.formatting import hypervolume, number

    if not study.has_one_objective:
        return f"hypervolume {hypervolume(study.measured_hypervolume())}"
    history = study.history()
    return f"best {number(history[-1].scores[study.objectives[0].name])}" if history else ""


def _study_row(study: Study) -> dict[str, Any]:
    return {
        "name": study.name,
        "evaluations": study.finished_count(),
        "budget": study.record.evaluations,
        "objectives": [{"name": objective.name, "direction": objective.direction} for objective in study.objectives],
        "methods": [] if study.definition.compares else [method.name for method in study.space.methods],
        "sampler": None if study.definition.compares else study.definition.sampler,
        **({} if study.has_one_objective else study.hypervolume_json()),
        "created": f"{study.record.created_at.isoformat(timespec='seconds')}Z",
    }


def _status(study: Study) -> dict[str, Any]:
    from dataclasses import asdict
    from statistics import median

    from optuna.trial import TrialState

    from mergefront.optimizer.scores.outcomes import total_outcomes
    from mergefront.results.throughput import budget_lines, throughput
    from mergefront.study.stored_study import rounded

    candidates = study.candidates()
    seconds = [
        candidate.evaluation.seconds["total"] for candidate in candidates if "total" in candidate.evaluation.seconds
    ]
    best = {}
    for objective in study.objectives if any(candidate.feasible for candidate in candidates) else ():
        found = study.best(objective.name)
        best[objective.name] = {
            "trial": found.number,
            "anchor": found.anchor,
            "score": rounded(found.scores)[objective.name],
            "standard_error": found.standard_errors.get(objective.name),
            "interval": study.interval(found, objective),
        }
    failures = study.failures()
    stopped = study.stopped
    by_reason: dict[str, list[int]] = {}
    for failure in failures:
        by_reason.setdefault(failure.reason, []).append(failure.number)
    done, budget = study.finished_count(), study.record.evaluations
    running = study.trials(TrialState.RUNNING)
    following = "ask" if study.definition.evaluator.type == "external" else "resume"
    command = f"mergefront {following} {shlex.quote(study.name)}{storage_argument(study.database.url)}"
    finished = study.trials(TrialState.COMPLETE, TrialState.FAIL)
    speed = throughput(
        [(t.datetime_start, t.datetime_complete) for t in finished if t.datetime_start and t.datetime_complete],
        [candidate.evaluation.cost for candidate in candidates],
        max(budget - done, 0),
    )
    return {
        "study": study.name,
        "storage": shown_storage(study.database.url),
        "evaluations": {"done": done, "budget": budget, "failed": len(failures), "running": len(running)},
        "running": [trial.number for trial in running],
        **({} if study.has_one_objective else study.hypervolume_json(candidates)),
        "seconds_per_evaluation": median(seconds) if seconds else None,
        "per_hour": speed.per_hour,
        "seconds_left": speed.seconds_left,
        "spent": dict(speed.spent),
        "cost_left": dict(speed.cost_left),
        "budgets": budget_lines(study.definition),
        "report": _report(study) if study.definition.evaluator.tasks else None,
        "outcomes": total_outcomes(study.own_evaluations()),
        "workers": [asdict(worker) for worker in study.ledger.workers()],
        "best": best,
        "failures": [
            {"reason": reason, "count": len(numbers), "trials": numbers}
            for reason, numbers in sorted(by_reason.items(), key=lambda entry: -len(entry[1]))
        ],
        "stopped": None if stopped is None else {"cause": stopped.cause, "reason": stopped.reason},
        "resume": command if done < budget else None,
    }


def _report(study: Study) -> dict[str, Any]:
    """What scoring on the report items has taken, and how many of the front and the anchors it has not scored yet."""
    from mergefront.results.throughput import spent

    rows = study.ledger.evaluations("report")
    left = {candidate.digest for candidate in (*study.anchors(), *study.front())} - rows.keys()
    took = spent(rows.values())
    seconds = took.seconds.get("total", 0.0)
    return {"scored": took.evaluations, "left": len(left), "seconds": seconds, "spent": dict(took.cost)}
