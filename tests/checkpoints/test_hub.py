"""Failed downloads say what to do. A stub of the hub answers on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ANSWERS = {
    "gated, not logged in": (401, "GatedRepo", "it is gated; ask for access at"),
    "gated, without access": (403, "GatedRepo", "set HF_TOKEN"),
    "missing": (404, "RepoNotFound", "does not exist there, or it is private"),
    "private": (401, "RepoNotFound", "log in with"),
}


@contextmanager
def hub(status: int, code: str) -> Iterator[str]:
    """Run a hub that gives one answer to everything; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            body = json.dumps({"error": "no"}).encode()
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Request-Id", "Root=1-abc")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the library's name

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def inspect(home: Path, address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "hybridize", "inspect", "some/model"],
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("what", list(ANSWERS))
def test_a_refused_download_says_what_to_do(tmp_path, what):
    status, code, words = ANSWERS[what]
    with hub(status, code) as address:
        done = inspect(tmp_path, address)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_offline_without_the_model_says_what_to_do(tmp_path):
    done = inspect(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE is set, and the model is not in the cache" in done.stderr
