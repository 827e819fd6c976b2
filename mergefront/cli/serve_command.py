"""The command that serves a pool of models to others: serve."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from mergefront.optimizer.errors import UserError


@click.command(short_help="Serve a pool of models: users send recipes, get scores and texts.")
@click.argument("pool_file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--host", metavar="ADDRESS", help="Listen here instead of the file's host (127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Listen here instead of the file's port.")
def serve(pool_file: Path, host: str | None, port: int | None) -> None:
    """Load the base model and the experts of POOL_FILE once, and answer what clients ask of their merges.

    A study's backend `{type: merge_service, url: ..., pool: NAME}` talks to it. It listens on this machine only
    unless the file declares clients with tokens. SIGTERM ends it cleanly; sessions survive a restart.

    \b
    Examples:
      mergefront serve pool.yaml
      mergefront serve pool.yaml --port 9000
    """
    try:
        import fastapi
        import uvicorn
    except ImportError:
        raise UserError('serving needs the extra: pip install "mergefront[serve,local]"') from None
    del fastapi, uvicorn
    from mergefront.adapters.merge_server.process import bound_socket, run_service
    from mergefront.pool_file import load_service, read_pool_file

    file = read_pool_file(pool_file)
    changes = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    file = file.model_copy(update=changes)
    bound = bound_socket(file.host, file.port)
    with bound:
        click.echo(f"Loading pool {file.pool}: {len(file.models)} models", err=True)
        service = load_service(file, pool_file.resolve().parent)
        _log_to_stderr()
        run_service(service, bound, lambda url: _say_ready(file.pool, url))
    click.echo("The service has ended.", err=True)


def _say_ready(pool: str, url: str) -> None:
    click.echo(f"Pool {pool} is served at {url} (Ctrl-C ends)", err=True)
    sys.stderr.flush()


def _log_to_stderr() -> None:
    """One line per job, with neither tokens nor texts in it."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("mergefront.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
