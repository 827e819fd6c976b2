"""A small server that speaks the Hub's protocol to the real huggingface_hub: repositories, revisions, ranges, LFS."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_of_a_friend"
FRIEND = "friend"
_LARGE = 50_000
"""Files of this size and above are redirected, as those in large-file storage are."""


@dataclass
class Repository:
    """Files by path at each commit, newest last. ``gated`` ones are listed and not given without the token;
    ``private`` ones do not exist without it."""

    commits: list[dict[str, bytes]]
    gated: bool = False
    private: bool = False

    def shas(self) -> list[str]:
        return [
            _sha(str(number).encode(), *sorted(files), *files.values()) for number, files in enumerate(self.commits)
        ]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; the newest is "main", the first is tagged "v1"."""
        shas = self.shas()
        named = {"main": shas[-1], "v1": shas[0], **{sha: sha for sha in shas}}
        sha = named.get(revision)
        return None if sha is None else (sha, self.commits[shas.index(sha)])


@dataclass
class Hub:
    """``repositories`` are models by name, and data sets by ``datasets/`` and their name. ``requests`` has, of every
    request, method, path and how many bytes of body were answered."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    busy: int = 0
    """How many of the next requests are answered 429."""
    large: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded to large-file storage, by its hash."""

    def add(self, name: str, folder: Path, **options: bool) -> Repository:
        """Publish a folder; a second time, as the next commit."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        known = self.repositories.setdefault(name, Repository([], **options))
        known.commits.append(files)
        return known

    def sent(self, ending: str) -> int:
        """Bytes answered of files whose names end so."""
        return sum(size for method, path, size in self.requests if method == "GET" and path.endswith(ending))


def _sha(*parts: str | bytes) -> str:
    digest = hashlib.sha1()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A Hub on a free port of this machine, without repositories."""

    class Handler(_Handler):
        hub: Hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Handler.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hub_of_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub as huggingface_hub sees it here, with a cache in ``folder``.

    The library has read its environment long ago, so its constants are set.
    """
    from huggingface_hub import constants

    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent: tests look at ``Hub.requests``."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.large[hashlib.sha256(data).hexdigest()] = data
        self._send(200, b"", {})

    def do_POST(self) -> None:
        """What uploading takes: a repository, how each file travels, large files, and the commit."""
        path = urlsplit(self.path).path.strip("/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(401, "", "Invalid username or password.")
        asked = self._body()
        if path == "api/repos/create":
            wanted = json.loads(asked)
            name = f"{wanted.get('organization') or FRIEND}/{wanted['name']}"
            new = Repository([{".gitattributes": b""}], private=wanted.get("visibility") == "private")
            is_known = self.hub.repositories.setdefault(name, new) is not new
            return self._json({"url": f"{self.hub.url}/{name}"}, 409 if is_known else 200)
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(asked)["objects"]
            where = {one["oid"]: {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}} for one in objects}
            return self._json({"objects": [{**one, "actions": where[one["oid"]]} for one in objects]})
        if "/preupload/" in path:
            files = json.loads(asked)["files"]
            modes = {file["path"]: "lfs" if file["size"] >= _LARGE else "regular" for file in files}
            return self._json(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        name = path.removeprefix("api/models/").partition("/commit/")[0]
        self.hub.repositories[name].commits.append(self._committed(name, asked))
        sha = self.hub.repositories[name].shas()[-1]
        return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def _committed(self, name: str, lines: bytes) -> dict[str, bytes]:
        files = dict(self.hub.repositories[name].commits[-1])
        for line in map(json.loads, lines.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return files

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if self.hub.busy:
            self.hub.busy -= 1
            return self._send(429, b"", {"Retry-After": "0"})
        if parts == ["api", "whoami-v2"]:
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return self._json({"type": "user", "name": FRIEND}) if known else self._fail(401, "", "Invalid credentials")
        if parts[0] == "lfs":
            name, _, path = "/".join(parts[1:]).partition("@")
            sha, _, path = path.partition("/")
            return self._file(self.hub.repositories[name].at(sha), path, linked=True)
        api = parts[0] == "api"
        kind, *parts = parts[1:] if api else ["datasets", *parts[1:]] if parts[0] == "datasets" else ["models", *parts]
        name, rest = "/".join(parts[:2]), parts[2:]
        name = f"datasets/{name}" if kind == "datasets" else name
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            return self._fail(404 if known else 401, "RepoNotFound", "Repository not found")
        wanted = repository.at(rest[1] if len(rest) > 1 else "main")
        if wanted is None:
            return self._fail(404, "RevisionNotFound", "Revision not found")
        if api and rest[:1] == ["tree"]:
            return self._json([{"type": "file", "path": path, **_described(data)} for path, data in wanted[1].items()])
        if api:
            siblings = [{"rfilename": path, **_described(data)} for path, data in wanted[1].items()]
            return self._json(
                {
                    "id": name.removeprefix("datasets/"),
                    "sha": wanted[0],
                    "siblings": siblings,
                    "tags": [],
                    "gated": repository.gated,
                    "private": repository.private,
                }
            )
        if repository.gated and not known:
            return self._fail(403, "GatedRepo", "Access to this model is restricted")
        path = "/".join(rest[2:])
        return self._file(wanted, path, redirect=f"/lfs/{name}@{wanted[0]}/{path}")

    def _file(
        self, wanted: tuple[str, Mapping[str, bytes]] | None, path: str, redirect: str = "", linked: bool = False
    ) -> None:
        assert wanted is not None
        sha, files = wanted
        if path not in files:
            return self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        data = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_etag(data)}"', "Accept-Ranges": "bytes"}
        if redirect and len(data) >= _LARGE:
            linked_to = {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(data))}
            return self._send(302, b"", {**headers, **linked_to, "Location": self.hub.url + redirect})
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked:
            first, _, last = asked.partition("-")
            end = min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            return self._send(206, data[int(first) : end + 1], headers)
        return self._send(200, data, headers)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.hub.requests.append((self.command, urlsplit(self.path).path, len(body) if self.command == "GET" else 0))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if len(data) >= _LARGE else _sha(f"blob {len(data)}\0", data)


def _described(data: bytes) -> dict[str, Any]:
    described: dict[str, Any] = {"size": len(data), "oid": _sha(f"blob {len(data)}\0", data)}
    if len(data) >= _LARGE:
        sha = hashlib.sha256(data).hexdigest()
        described["lfs"] = {"oid": sha, "sha256": sha, "size": len(data), "pointerSize": 134}
    return described
