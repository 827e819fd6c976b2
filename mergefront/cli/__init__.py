"""The command line. Results go to stdout, progress and log to stderr; see docs/reference/cli.

Whatever is heavy (torch, optuna, SQL, rich) is imported inside the commands, so that ``mergefront --help``
answers at once.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of ``mergefront``; exits with 0, 1, 2 or 130 (see docs/reference/cli)."""
    from mergefront.cli.application import cli

    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show an arrow must not end a finished search with an error.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    cli.main(prog_name="mergefront")
