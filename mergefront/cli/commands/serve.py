"""The command that serves a pool of models to others: serve."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from mergefront.cli.logs import echo
from mergefront.cli.options import storage_option
from mergefront.cli.session import shown_storage
from mergefront.optimizer.errors import UserError

_TOKEN_VARIABLE = "MERGEFRONT_STUDIES_TOKEN"


@click.command(short_help="Serve a pool of models, or studies, to others over HTTP.")
@click.argument("pool_file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--studies", is_flag=True, help="Serve ask and tell for the studies of --storage instead of a pool.")
@storage_option
@click.option("--host", metavar="ADDRESS", help="Listen here instead of the file's host (127.0.0.1).")
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="N", help="Listen here instead of the file's port (studies: 8281)."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Studies only: the bearer token that clients have to send; also from MERGEFRONT_STUDIES_TOKEN.",
)
def serve(
    pool_file: Path | None, studies: bool, storage: str, host: str | None, port: int | None, token_file: Path | None
) -> None:
    """Load the base model and the experts of POOL_FILE once, and answer what clients ask of their merges.
    Or, with --studies, let any harness ask for recipes and tell their scores.

    A study's backend `{type: merge_service, url: ..., pool: NAME}` talks to it. It listens on this machine only
    unless the file declares clients with tokens. SIGTERM ends it cleanly; sessions survive a restart.

    \b
    Examples:
      mergefront serve pool.yaml
      mergefront serve pool.yaml --port 9000
      mergefront serve --studies --storage skills.db
    """
    try:
        import fastapi
        import uvicorn
    except ImportError:
        raise UserError('serving needs the extra: pip install "mergefront[serve,local]"') from None
    del fastapi, uvicorn
    if studies == (pool_file is not None):
        raise click.UsageError("give a pool file, or --studies")
    if pool_file is None:
        _serve_studies(storage, host or "127.0.0.1", 8281 if port is None else port, token_file)
        return
    if token_file is not None:
        raise click.UsageError("--token-file goes with --studies; a pool file declares its clients itself")
    from mergefront.serving.merges.application import run_service
    from mergefront.serving.pool_file import load_service, read_pool_file
    from mergefront.serving.process import bound_socket

    file = read_pool_file(pool_file)
    changes = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    file = file.model_copy(update=changes)
    bound = bound_socket(file.host, file.port)
    with bound:
        echo(f"Loading pool {file.pool}: {len(file.models)} models", err=True)
        service = load_service(file, pool_file.resolve().parent)
        _log_to_stderr()
        run_service(service, bound, lambda url: _say_ready(f"Pool {file.pool} is", url))
    echo("The service has ended.", err=True)


def _serve_studies(storage: str, host: str, port: int, token_file: Path | None) -> None:
    from mergefront.serving.study_server import serve_studies
    from mergefront.serving.tokens import checked_token, token_in_file
    from mergefront.storage.database import Database

    token = os.environ.get(_TOKEN_VARIABLE)
    if token_file is not None:
        token = token_in_file(token_file, "--token-file")
    elif token is not None:
        token = checked_token(token, f"the environment variable {_TOKEN_VARIABLE}")
    database = Database(storage, create=False)
    what = f"The studies of {shown_storage(database.url)} are"
    serve_studies(database, host, port, token, lambda url: _say_ready(what, url))
    echo("The service has ended.", err=True)


def _say_ready(what: str, url: str) -> None:
    echo(f"{what} served at {url} (Ctrl-C ends)", err=True)
    sys.stderr.flush()


def _log_to_stderr() -> None:
    """One line per job, with neither tokens nor texts in it."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("mergefront.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
