"""The group of all commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from mergefront.cli.boundary import guarded
from mergefront.cli.commands.authoring import bench, init, schema
from mergefront.cli.commands.chat import chat
from mergefront.cli.commands.demo import demo
from mergefront.cli.commands.llama_cpp import gguf, llama_server
from mergefront.cli.commands.models import export, merge
from mergefront.cli.commands.searches import check, compare, report, resume, run
from mergefront.cli.commands.serve import serve
from mergefront.cli.commands.studies import dashboard, front, status, studies
from mergefront.cli.commands.team import ask, copy, create, delete, rename, tell, upgrade, worker
from mergefront.cli.logs import configure_log
from mergefront.cli.session import Session


class Application(click.Group):
    """A group whose ``main`` is the error boundary, for the shell and for tests alike."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        if "_MERGEFRONT_COMPLETE" in os.environ:
            return super().main(*args, **extra)  # click answers the shell, and exits
        session = Session()
        run: Callable[..., Any] = super().main
        code = guarded(lambda: run(*args, standalone_mode=False, obj=session, **extra), session)
        if standalone_mode:
            sys.exit(code)
        return code

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use, not of the alphabet."""
        return list(self.commands)


@click.group(cls=Application, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="MERGEFRONT_LOG_FORMAT",
    show_envvar=True,
    help="The log on stderr, for people or for programs (one JSON object a line).",
)
@click.version_option(package_name="mergefront", prog_name="mergefront", message="%(prog)s %(version)s")
@click.pass_obj
def cli(session: Session, debug: bool, log_format: str) -> None:
    """Find the Pareto front of language model merges in as few evaluations as possible.

    \b
    Start here:
      mergefront demo                       the whole thing on a tiny example, offline
      mergefront init BASE EXPERT...        a study file for your own models
      mergefront run study.yaml             search; continues where it stopped
      mergefront front NAME                 the merges worth having
      mergefront chat NAME                  talk to them
      mergefront export NAME --out merged           the merge that it suggests
    """
    session.debug = debug
    session.log_format = log_format
    configure_log(log_format)


for _command in (
    demo,
    init,
    check,
    bench,
    compare,
    run,
    resume,
    worker,
    report,
    studies,
    status,
    front,
    chat,
    export,
    merge,
    dashboard,
    serve,
    gguf,
    llama_server,
    create,
    ask,
    tell,
    rename,
    copy,
    delete,
    upgrade,
    schema,
):
    cli.add_command(_command)
