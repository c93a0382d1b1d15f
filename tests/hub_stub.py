"""A hub on this machine, for tests with the real client: huggingface_hub.

It answers the requests that huggingface_hub 1 and 2 make to list and download files, including
ranges, redirects of renamed repositories, and failures in the middle of a file.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


def commit_id(text: str) -> str:
    """Return a commit hash that belongs to a text."""
    return hashlib.sha1(text.encode()).hexdigest()


@dataclass(frozen=True)
class Refusal:
    """An answer with an error status."""

    status: int
    code: str = ""
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class StubHub:
    """The contents of the hub, and what was asked of it.

    Attributes:
        address: ``http://127.0.0.1:PORT``.
        repositories: by ``OWNER/NAME``, the commit hash of each revision.
        trees: by commit hash, the directory with the files.
        renamed: the new name of each renamed repository.
        refuse: called with the method and the path of each request; returns a refusal or None.
        break_after: bytes of a file after which the connection breaks, by the file's name. A
            number is used once for each item of the list.
        ranges: whether parts of files can be asked for.
        served: the bytes that were sent, by the file's name.
        requests: ``METHOD path`` of each request.
        tokens: the Authorization headers of the requests.
    """

    address: str = ""
    repositories: dict[str, dict[str, str]] = field(default_factory=dict)
    trees: dict[str, Path] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    refuse: Callable[[str, str], Refusal | None] = lambda _method, _path: None
    break_after: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    served: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def add(self, name: str, directory: Path, *, revision: str = "main") -> str:
        """Publish a directory as a revision of a repository; return the commit hash."""
        commit = commit_id(f"{name} {directory} {revision}")
        self.repositories.setdefault(name, {})[revision] = commit
        self.trees[commit] = directory
        return commit

    def files(self, commit: str) -> list[str]:
        """Return the names of a commit's files."""
        root = self.trees[commit]
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StubHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.append(self.headers.get("Authorization", ""))
        refusal = self.hub.refuse(self.command, path)
        if refusal is not None:
            return self._refuse(refusal)
        parts = path.strip("/").split("/")
        is_api = parts[:1] == ["api"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        if name in self.hub.renamed:
            target = self.path.replace(name, self.hub.renamed[name])
            return self._answer(307, b"", {"Location": target})
        if name not in self.hub.repositories:
            return self._refuse(Refusal(401, "RepoNotFound", "Invalid username or password."))
        rest = parts[4:] if is_api else parts[2:]
        if is_api:
            return self._api(name, rest)
        if rest[:1] == ["resolve"]:
            return self._file(name, rest[1:])
        return self._refuse(Refusal(404))

    def _commit(self, name: str, words: list[str]) -> tuple[str | None, list[str]]:
        """Return the commit of the longest revision that the words begin with, and the rest."""
        revisions = self.hub.repositories[name]
        known = revisions | {commit: commit for commit in revisions.values()}
        for count in range(len(words), 0, -1):
            if "/".join(words[:count]) in known:
                return known["/".join(words[:count])], words[count:]
        return None, words

    def _api(self, name: str, rest: list[str]) -> None:
        kind, words = (rest[0], rest[1:]) if rest else ("revision", ["main"])
        commit, _ = self._commit(name, words)
        if commit is None:
            return self._refuse(Refusal(404, "RevisionNotFound", "Invalid rev id"))
        root, files = self.hub.trees[commit], self.hub.files(commit)
        if kind == "tree":
            entries: Any = [
                {
                    "type": "file",
                    "path": file,
                    "size": (root / file).stat().st_size,
                    "oid": commit_id(file),
                }
                for file in files
            ]
        else:
            entries = {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": False,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": file} for file in files],
            }
        return self._answer(200, json.dumps(entries).encode(), {})

    def _file(self, name: str, words: list[str]) -> None:
        commit, rest = self._commit(name, words)
        if commit is None:
            return self._refuse(Refusal(404, "RevisionNotFound", "Invalid rev id"))
        file = "/".join(rest)
        if file not in self.hub.files(commit):
            return self._refuse(Refusal(404, "EntryNotFound", "Entry not found"))
        data = (self.hub.trees[commit] / file).read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        wanted, status, total = self.headers.get("Range"), 200, len(data)
        if wanted is not None and self.hub.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or total - 1), total - 1)
            data, status = data[start : stop + 1], 206
            headers["Content-Range"] = f"bytes {start}-{stop}/{total}"
        return self._answer(status, data, headers, file)

    def _refuse(self, refusal: Refusal) -> None:
        headers = dict(refusal.headers)
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        if refusal.message:
            headers["X-Error-Message"] = refusal.message
        body = json.dumps({"error": refusal.message or "no"}).encode()
        self._answer(refusal.status, body, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], file: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("X-Request-Id", "Root=1-abc")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limits = self.hub.break_after.get(file, [])
        sent = body[: limits.pop(0)] if limits else body
        if file:
            self.hub.served[file] = self.hub.served.get(file, 0) + len(sent)
        with suppress(ConnectionError):  # the client has read enough
            self.wfile.write(sent)
        self.close_connection = self.close_connection or len(sent) < len(body)


@contextmanager
def stub_hub() -> Iterator[StubHub]:
    """Run a hub on a free port of this machine."""
    hub = StubHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """Make huggingface_hub in this process use a hub and a cache; it read its settings long ago."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    disable_progress_bars()
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "level", logging.ERROR)
    # The client waits for seconds before it tries again.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


def hub_variables(address: str, home: Path) -> dict[str, str]:
    """Return environment variables that make huggingface_hub use a hub and an own cache."""
    return {
        "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip


def run_with_hub(
    arguments: list[str], address: str, home: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line with a hub and a cache of its own, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "hybridize", *arguments],
        env=os.environ | hub_variables(address, home) | environment,
        capture_output=True,
        text=True,
        check=False,
    )
