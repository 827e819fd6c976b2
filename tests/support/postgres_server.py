"""A PostgreSQL server of its own, from Debian's package, in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy
from ports import free_port


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl; None when PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """Runs until ``stop``; PostgreSQL refuses to run as root, so root starts it as another user."""

    def __init__(self, bin_folder: Path, folder: Path | None = None) -> None:
        """``folder`` is one that an earlier server left; by default a new one."""
        self.bin = bin_folder
        known = folder is not None and (folder / "data").is_dir()
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="mergefront-postgres-"))
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.user: str | None = _unprivileged() if os.getuid() == 0 else None
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        self.port = free_port()
        if known:
            if (folder / "data" / "postmaster.pid").exists():
                with suppress(RuntimeError):  # its process may be gone
                    self.stop("immediate")
                (folder / "data" / "postmaster.pid").unlink(missing_ok=True)
            self.start()
            return
        self._call(
            "initdb", "-D", self.data, "-U", "mergefront", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"
        )
        self.start()

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=200"
        self._call("pg_ctl", "-D", self.data, "-o", options, "-l", str(self.folder / "log"), "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; ``immediate`` is a crash that it recovers from when started again."""
        self._call("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def remove(self) -> None:
        """Stop the server and remove its files."""
        try:
            self.stop("immediate")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid4().hex}"
        engine = sqlalchemy.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://mergefront@127.0.0.1:{self.port}/{database}"

    def _call(self, program: str, *arguments: str) -> None:
        other: dict[str, Any] = {"user": self.user, "group": self.user} if self.user is not None else {}
        # pg_ctl's server keeps its standard streams open, so a pipe would never end.
        with (self.folder.parent / f"{self.folder.name}.out").open("w+") as out:
            done = subprocess.run(
                [str(self.bin / program), *arguments],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                **other,
            )
            out.seek(0)
            said = out.read()
        Path(out.name).unlink()
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {said}")


def _unprivileged() -> str:
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise RuntimeError("there is no user that PostgreSQL could run as")
