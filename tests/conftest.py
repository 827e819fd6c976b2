"""What tests of several packages need: databases of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mysql_server import MysqlServer
    from postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; tests that need it are skipped where it is not installed."""
    pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
    from postgres_server import PostgresServer, binaries

    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    server = PostgresServer(folder)
    yield server
    server.remove()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """The URL of an empty PostgreSQL database."""
    return postgres.new_database()


@pytest.fixture(scope="session")
def mysql() -> Iterator[MysqlServer]:
    """A MariaDB server; tests that need it are skipped where it is not installed."""
    pytest.importorskip("pymysql", reason="needs the extra 'mysql'")
    from mysql_server import MysqlServer, is_installed

    if not is_installed():
        pytest.skip("MariaDB is not installed (apt-get install mariadb-server)")
    server = MysqlServer()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    if request.param == "mysql":
        server: MysqlServer = request.getfixturevalue("mysql")
        return server.new_database()
    return str(request.getfixturevalue("postgres_url"))
