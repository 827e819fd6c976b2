"""Looking at a study: the report page, the front, its hypervolume, the dashboard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import mergefront as mf
from benchmarks.growth.rows import Row
from benchmarks.growth.studies import NAME, growing_study, made

ITEMS = 10_000


def report_page(url: str) -> Callable[[], object]:
    from mergefront.results.report.contents import contents
    from mergefront.results.report.page import page

    study = mf.load_study(NAME, storage=url)
    return lambda: f"{len(page(contents(study))) // 1024:,} KB"


def distinct(url: str) -> Callable[[], object]:
    study = mf.load_study(NAME, storage=url)
    return study.distinct_front


def hypervolume(url: str) -> Callable[[], object]:
    from mergefront.running.progress import SearchState

    study = mf.load_study(NAME, storage=url)
    return lambda: SearchState(study).hypervolume


def dashboard(url: str) -> Callable[[], object]:
    from mergefront.serving.dashboard import dashboard_application
    from mergefront.storage.database import Database

    return _reload(dashboard_application(Database(url, create=False)))


def plain_dashboard(url: str) -> Callable[[], object]:
    import optuna
    from optuna_dashboard import wsgi

    return _reload(wsgi(optuna.storages.RDBStorage(url)))


def recipe_file(url: str) -> Callable[[], object]:
    from mergefront.serving.dashboard import dashboard_application
    from mergefront.storage.database import Database

    application = dashboard_application(Database(url, create=False))
    trials = mf.load_study("study-99", storage=url).optuna.get_trials(deepcopy=False)
    found = trials[-1]._trial_id
    return lambda: _get(application, f"/artifacts/100/{found}/0ec1be-{found}")


def _reload(application: Any) -> Callable[[], object]:
    """What a browser asks for when the page of a study is opened."""
    return lambda: [_get(application, path) for path in ("/api/studies", "/api/studies/1?after=0")]


def _get(application: Any, path: str) -> bytes:
    path, _, query = path.partition("?")
    told: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "HTTP_HOST": "127.0.0.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
    }
    body = b"".join(application(environ, lambda status, headers, exc_info=None: told.append(status)))
    assert told[0].startswith("200"), (told, body[:200])
    return body


def _hundred_studies(url: str, trials: int) -> None:
    for index in range(100):
        growing_study(url, trials, name=f"study-{index}")


ROWS: Mapping[str, Row] = {
    "report page": Row(made(), report_page, 3000, drawn=(30, 100, 300, 1000, 3000), bar="5"),
    f"front --distinct, {ITEMS:,} items": Row(made(items=ITEMS, objectives=5), distinct, 100, bar="2"),
    "hypervolume after a trial, 8 objectives": Row(made(objectives=8), hypervolume, 500),
    "dashboard, page of a study": Row(
        made(), dashboard, 3000, plain=plain_dashboard, drawn=(30, 100, 300, 1000, 3000), bar="plain"
    ),
    "dashboard, a recipe file of 100 studies": Row(_hundred_studies, recipe_file, 30, bar="0.3"),
}
