"""Commands that help to write a study file: schema."""

from __future__ import annotations

import click

from mergefront.cli.options import print_json


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
