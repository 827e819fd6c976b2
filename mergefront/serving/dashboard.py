"""optuna-dashboard on loopback.

It has no log-in and no protection against other web pages, and it can delete and rename studies under
their workers. So it listens on 127.0.0.1 only, answers only requests that were addressed to this machine
by name and did not come from another site's page (a rebound DNS name or a form would), and changes nothing
but notes, and its pages offer nothing else; 'mergefront rename' and 'mergefront delete' do the rest safely.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from mergefront.optimizer.errors import UserError
from mergefront.serving.guard import OWN_NAMES, host_name

if TYPE_CHECKING:
    from mergefront.results.dashboard_view import ExplainedStorage
    from mergefront.storage.database import Database

HOST = "127.0.0.1"

_CONDITIONAL = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE")
_OF_THE_FILE = ("content-length", "last-modified", "etag", "accept-ranges")
_READ_ONLY = b"""<style>
[aria-label="rename study"], [aria-label="delete study"], [aria-label="delete artifact"],
button:has([data-testid="AddBoxIcon"]), button:has([data-testid="StopCircleIcon"]),
.MuiCardActionArea-root:has(input[type="file"]) { display: none !important; }
#read-only { position: fixed; z-index: 2000; bottom: 0; right: 0; padding: 4px 12px; border-top-left-radius: 6px;
  background: #1976d2; color: #fff; font: 13px/1.5 sans-serif; }
</style></head>"""
_NOTICE = (
    b'<body><div id="read-only">Read only, except notes: create, rename, copy and delete studies with the commands of '
    b"mergefront.</div>"
)

_PAGE = re.compile(r"/api/studies/\d{1,18}")
_MOST_PAGES = 4
"""That are remembered: of 3,000 trials, each takes 8 MB."""
_STUDY = re.compile(r"/api/studies/(\d{1,18})(?:/|$)")
_NOTE = re.compile(r"/api/studies/\d+(/\d+)?/note")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    timeout = 30.0  # seconds that a client may send or read nothing; each connection holds a thread

    def log_message(self, format: str, *args: Any) -> None:
        """One line per poll would bury everything else."""


def dashboard_application(database: Database) -> Application:
    """optuna-dashboard with our explanations, closed to others and to changes; ``UserError`` without the extra."""
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise UserError('the dashboard needs the extra: pip install "mergefront[dashboard]"') from None
    from mergefront.results.dashboard_view import ExplainedStorage, RecipeFiles

    storage = ExplainedStorage(database)
    application = remembered(wsgi(storage, RecipeFiles(storage)), storage)
    return only_from_here(without_changes(explained(application, storage)))


def serve(database: Database, port: int, on_start: Callable[[str], None]) -> None:
    """Serve until interrupted; ``on_start`` gets the address. ``UserError`` without the extra, for a port in use."""

    application = dashboard_application(database)
    try:
        server = make_server(HOST, port, application, server_class=_Server, handler_class=_QuietHandler)
    except OSError as error:
        raise UserError(f"port {port} cannot be used ({error.strerror}); choose another one with --port") from None
    with server:
        on_start(f"http://{HOST}:{server.server_port}/")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return


def only_from_here(application: Application) -> Application:
    """``application``, refusing requests by foreign host names and from foreign pages."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "")
        origin = environ.get("HTTP_ORIGIN")
        if host_name(host) not in OWN_NAMES or (origin is not None and urlsplit(origin).netloc != host):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"This server answers its own machine only.\n"]
        return application(environ, start_response)

    return guarded


def without_changes(application: Application) -> Application:
    """``application``, whose pages do not offer what is refused, and say so."""

    def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not str(environ.get("PATH_INFO", "")).startswith("/dashboard"):
            return application(environ, start_response)
        started: list[tuple[str, list[tuple[str, str]]]] = []
        whole = {name: value for name, value in environ.items() if name not in _CONDITIONAL}
        parts = application(whole, lambda status, headers, exc_info=None: started.append((status, headers)))
        body = b"".join(parts).replace(b"</head>", _READ_ONLY).replace(b"<body>", _NOTICE)
        (status, headers), *_ = started
        kept = [(name, value) for name, value in headers if name.lower() not in _OF_THE_FILE]
        start_response(status, [*kept, ("Content-Length", str(len(body)))])
        return [body]

    return page


def explained(application: Application, storage: ExplainedStorage) -> Application:
    """``application``, telling ``storage`` which study is looked at, and refusing to change anything but notes."""

    def telling(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = str(environ.get("PATH_INFO", ""))
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD") and not _NOTE.fullmatch(path):
            start_response("403 Forbidden", [("Content-Type", "application/json")])
            return [b'{"reason": "This dashboard only shows studies; rename, copy and delete them with mergefront."}']
        found = _STUDY.match(path)
        token = storage.looked_at.set(int(found[1]) if found else None)
        try:
            return application(environ, start_response)
        finally:
            storage.looked_at.reset(token)

    return telling


def remembered(application: Application, storage: ExplainedStorage) -> Application:
    """``application``, which gives the pages of studies in which nothing has changed as it gave them before.

    The page asks every few seconds, and is made from all trials each time.
    """
    pages: dict[tuple[str, str], tuple[tuple[Any, ...], str, list[tuple[str, str]], bytes]] = {}
    changing = threading.Lock()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        study_id, key = storage.looked_at.get(), (environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", ""))
        if study_id is None or environ.get("REQUEST_METHOD") != "GET" or not _PAGE.fullmatch(key[0]):
            return application(environ, start_response)
        try:
            state = storage.state(study_id)
        except KeyError:  # there is no such study
            return application(environ, start_response)
        known = pages.get(key)
        if known is None or known[0] != state:
            started: list[tuple[str, list[tuple[str, str]]]] = []
            parts = application(environ, lambda status, headers, exc_info=None: started.append((status, headers)))
            known = (state, *started[-1], b"".join(parts))
            with changing:
                pages[key] = known
                if len(pages) > _MOST_PAGES:
                    del pages[next(iter(pages))]
        start_response(known[1], known[2])
        return [known[3]]

    return answer
