"""Commands that help to write a study file: init, schema, bench."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from mergefront.cli.logs import echo
from mergefront.cli.options import print_json
from mergefront.cli.searching import quiet_libraries
from mergefront.optimizer.errors import UserError


@click.command(short_help="Print the JSON schema of study files, for editors.")
@click.option("--pool", is_flag=True, help="The schema of the pool file of mergefront serve instead.")
def schema(pool: bool) -> None:
    """Print the JSON schema of study files, by which an editor completes and checks them while one writes.

    An editor with the YAML language server (VS Code, Neovim, Helix, Emacs ...) uses it for a file that begins with:

    \b
      # yaml-language-server: $schema=study.schema.json

    \b
    Example:
      mergefront schema > study.schema.json
    """
    from mergefront.authoring.schema import pool_schema, study_schema

    print_json(pool_schema() if pool else study_schema())


@click.command(short_help="Write a first study file for a base model and its experts.")
@click.argument("base")
@click.argument("experts", nargs=-1, required=True, metavar="EXPERT...")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME|FILE",
    help="What merges are to be good at: a JSONL file of items, or a task of the LM evaluation harness (repeatable).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("study.yaml"),
    show_default=True,
    metavar="FILE",
    help="The file to write; one that is there is left alone.",
)
@click.pass_context
def init(context: click.Context, base: str, experts: tuple[str, ...], tasks: tuple[str, ...], output: Path) -> None:
    """Write a study file that merges EXPERT... (whole checkpoints or LoRAs) of BASE, and check it.

    Models are folders, or names on the Hub (org/name, org/name@revision); only their headers are read. Every line of
    the file says why it is so: metric, budget, memory, about how long. Without --task a terminal is asked for one;
    elsewhere the file says what is missing. Exits with 2 when the file has a problem.

    \b
    Examples:
      mergefront init models/base models/maths models/french --task data/maths.jsonl --task data/french.jsonl
      mergefront init Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-0.5B-Instruct Qwen/Qwen2.5-Coder-0.5B --task gsm8k
    """
    from mergefront.authoring.draft import drafted
    from mergefront.authoring.models import look_at
    from mergefront.authoring.task_entries import task_entries
    from mergefront.study.check import check_study

    if os.path.lexists(output):
        raise UserError(f"{output} is there already; give another file with --output")
    if not output.parent.is_dir():
        raise UserError(f"--output: there is no folder {output.parent}")
    with quiet_libraries():
        models = look_at(base, experts, output.parent)
        asked = [*tasks]
        if not tasks and sys.stdin.isatty() and sys.stdout.isatty():
            question = "A file of items (.jsonl), or a task of the LM evaluation harness (empty: no more)"
            while told := click.prompt(question, default="", show_default=False).strip():
                asked.append(told)
        text = drafted(models, task_entries(asked, output.parent, models.asked), output)
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
        echo(f"Wrote {output}")
        if not asked:
            echo(f"It lacks tasks and objectives: fill in what {output} says under MISSING, then: mergefront check")
            return
        report = check_study(output)
    for note in (*report.notes, *(f"problem: {problem}" for problem in report.problems)):
        echo(note)
    shown = shlex.quote(str(output))
    if report.problems:
        echo(f"Mend what is named above, then: mergefront check {shown}")
        context.exit(2)
    echo(f"{output} is sound. Start with: mergefront run {shown}")


@click.command(short_help="Measure what a study file takes on this machine, in about a minute.")
@click.argument("study_file", type=click.Path(path_type=Path))
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=60.0, show_default=True, help="How long tasks are asked, in all."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def bench(study_file: Path, seconds: float, as_json: bool) -> None:
    """Make a merge by each method of STUDY_FILE, ask a part of its items, and say what the search will take.

    The models are loaded as for a run, those on the Hub fetched; nothing is stored.

    \b
    Example:
      mergefront bench study.yaml
    """
    from mergefront.cli.tables import plain_table
    from mergefront.formatting import console, duration, size
    from mergefront.running.bench import bench as measure
    from mergefront.study.check import check_study

    with quiet_libraries():
        found = measure(check_study(study_file), seconds, lambda step: echo(f"{step} ...", err=True))
    if as_json:
        print_json(found.to_json())
        return
    rows = [["loading the models", duration(found.loading), ""]]
    for method, one in found.merging.items():
        rows.append([f"merging by {method}", duration(one.later), f"{duration(one.first)} the first time"])
    for name, pace in found.tasks.items():
        measured = "all" if pace.asked == pace.items else str(pace.asked)
        said = f"{pace.items} items, measured on {measured}; {pace.tokens:,.0f} tokens of answers a second"
        rows.append([f"task {name}", duration(pace.of_candidate), said])
    rows.append(["a candidate", duration(found.of_candidate), "one merge and all its items"])
    rows.append(["the search", duration(found.of_search), f"{found.evaluations} evaluations, one after the other"])
    screen = console()
    screen.print(plain_table(["what", "takes", ""], rows))
    if found.peak is not None:
        screen.print(f"Memory in use at most: {size(found.peak)}.")
    if found.streamed:
        screen.print(f"Streamed for every merge, because it does not fit: {size(found.streamed)}.")
