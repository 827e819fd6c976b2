"""A MariaDB server of its own, from Debian's package, in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import sqlalchemy
from ports import free_port


def is_installed() -> bool:
    """Whether there is a server to start, and a user that it may run as."""
    return shutil.which("mariadbd") is not None and shutil.which("mariadb-install-db") is not None


class MysqlServer:
    """Runs until ``stop``; root starts it as another user, as its package does."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mergefront-mysql-"))
        self.user = "mysql" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        shutil.chown(self.folder, self.user)
        self.port = free_port()
        self._common = ["--no-defaults", f"--user={self.user}", f"--datadir={self.folder}/data"]
        subprocess.run(
            ["mariadb-install-db", *self._common, "--auth-root-authentication-method=normal", "--skip-test-db"],
            check=True,
            capture_output=True,
        )
        self.start()
        with self._connect("mysql") as connection:
            connection.exec_driver_sql("CREATE USER 'mergefront'@'127.0.0.1'")
            connection.exec_driver_sql("GRANT ALL ON *.* TO 'mergefront'@'127.0.0.1'")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [f"--port={self.port}", f"--socket={self.folder}/socket", "--bind-address=127.0.0.1"]
        # As good as 1 while the machine stays up, and many times faster.
        durability = ["--innodb-flush-log-at-trx-commit=2", "--max-connections=200"]
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                ["mariadbd", *self._common, *options, *durability], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        ends = time.monotonic() + 60
        while True:
            try:
                with self._connect("mysql"):
                    return
            except sqlalchemy.exc.OperationalError:
                if time.monotonic() > ends or self._process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.1)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; ``immediate`` is a crash that it recovers from when started again."""
        if mode == "immediate":
            self._process.kill()
        else:
            self._process.terminate()
        self._process.wait()

    def remove(self) -> None:
        """Stop the server and remove its files."""
        try:
            self.stop("immediate")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self, collation: str = "utf8mb4_bin") -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid4().hex}"
        with self._connect("mysql") as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE {collation}")
        return self.url(name)

    def url(self, database: str) -> str:
        return f"mysql+pymysql://mergefront@127.0.0.1:{self.port}/{database}"

    def _connect(self, database: str) -> sqlalchemy.Connection:
        url = f"mysql+pymysql://root@localhost/{database}?unix_socket={self.folder}/socket"
        return sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool).connect()
