"""What one call of the command line carries around: flags, and how to resume what it runs."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import dataclass

from mergefront.cli.logs import echo
from mergefront.storage import DEFAULT_STORAGE

STORAGE_VARIABLE = "MERGEFRONT_STORAGE"


@dataclass
class Session:
    """The state of one call. ``study`` is (name, storage URL) while a search runs.

    ``reported`` is (scored, of) while candidates are scored on report items.
    """

    debug: bool = False
    log_format: str = "text"
    study: tuple[str, str] | None = None
    kept: int = 0
    budget: int = 0
    reported: tuple[int, int] | None = None

    def say(self, line: str, level: int = logging.INFO) -> None:
        """A line for whoever watches stderr, in the format that was asked for."""
        if self.log_format == "json":
            logging.getLogger("mergefront").log(level, line)
        else:
            echo(line, err=True)

    def resume_hint(self) -> str | None:
        """What is kept and the command that continues, or None when nothing was under way."""
        if self.reported is not None:
            return "{} of {} candidates are scored and kept. The same command continues.".format(*self.reported)
        if self.study is None:
            return None
        name, storage = self.study
        return (
            f"{self.kept} of {self.budget} evaluations are kept. Continue with:\n"
            f"  mergefront resume {shlex.quote(name)}{storage_argument(storage)}"
        )


def storage_argument(url: str) -> str:
    """`` --storage URL`` as the user has to type it here; empty where the default or the environment says it.

    A password is never shown.
    """
    wanted = _normal(url)
    if wanted == _normal(os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE):
        return ""
    return f" --storage {shlex.quote(shown_storage(url))}"


def shown_storage(url: str) -> str:
    """The URL for messages: without password, an SQLite file relative to here where it lies below."""
    from sqlalchemy.engine import make_url

    wanted = _normal(url)
    if not wanted.startswith("sqlite:///"):
        return make_url(wanted).render_as_string(hide_password=True) if "://" in wanted else wanted
    path = wanted.removeprefix("sqlite:///")
    here = os.getcwd() + os.sep
    return f"sqlite:///{path[len(here) :] if path.startswith(here) else path}"


def _normal(url: str) -> str:
    """One spelling per database: an SQLite path is made absolute."""
    if "://" not in url:
        url = f"sqlite:///{url}"
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.startswith(":"):
        return url
    return f"sqlite:///{os.path.abspath(path)}"
