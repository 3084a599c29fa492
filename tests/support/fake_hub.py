"""A fake model hub on loopback: it speaks the protocol of huggingface_hub, and can misbehave.

Repositories are dictionaries of files. Large files (*.safetensors) are redirected to another
origin, as the real hub does. Every request is recorded.
"""

import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

from serve_app.cli.download import Ask

ROOT = Path(__file__).parent.parent.parent
COMMIT = "c0ffee" + "0" * 34
LATER = "facade" + "0" * 34
BASE = "stabilityai/stable-diffusion-xl-base-1.0"
REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"


class RunDownload(Protocol):
    """Runs `aura download` in this process; returns its exit status and what it printed."""

    def __call__(
        self,
        what: str = ...,
        *,
        accept_license: bool = ...,
        revision: str | None = ...,
        folder: Path = ...,
        ask: Ask | None = ...,
        endpoint: str | None = ...,
        free: int | None = ...,
    ) -> tuple[int, str]: ...


@dataclass
class Cut:
    """A response that ends too early, after some bytes of its body."""

    after: int
    how: Literal["close", "reset", "stall"]


@dataclass
class FakeRepo:
    """One repository, and how it misbehaves."""

    files: dict[str, bytes]
    card: dict[str, object] = field(default_factory=lambda: {"license": "openrail++"})
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: int | None = None  # the status of its files
    tokens: tuple[str, ...] = ()  # that may read it; any if there are none
    altered: dict[str, bytes] = field(default_factory=dict)  # content sent instead
    cuts: dict[str, list[Cut]] = field(default_factory=dict)  # of the next responses


@dataclass(frozen=True)
class Request:
    path: str
    range: str | None
    authorization: str | None


class FakeHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, FakeRepo] = {}
        self.requests: list[Request] = []
        self.stalled = threading.Event()  # set when a response stops in the middle
        self.ended = threading.Event()
        self.page: str | None = None  # the response to every request, as behind a login
        self.is_silent = False
        self.status: int | None = None  # of every response

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges_of(self, path: str) -> list[str | None]:
        """Return the Range of each request that was answered with bytes of a file."""
        cdn = (request for request in self.requests if request.path.startswith("/cdn/"))
        return [request.range for request in cdn if request.path.endswith(path)]

    def requested_files(self) -> set[str]:
        """Return the paths of all files that were requested."""
        paths = (request.path for request in self.requests)
        return {path.split("/resolve/")[1][41:] for path in paths if "/resolve/" in path}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        hub, headers = self.server, self.headers
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(Request(path, headers.get("Range"), headers.get("Authorization")))
        if hub.is_silent:
            hub.ended.wait()
        elif hub.status:
            self.send_failure(hub.status, None, "come back later")
        elif hub.page is not None:
            self.send(200, hub.page.encode(), {"Content-Type": "text/html"})
        elif path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self.send_info(name, revision)
        elif path.startswith("/cdn/"):
            _, _, owner, repository, file = path.split("/", 4)
            self.send_content(hub.repos[f"{owner}/{repository}"], file)
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            self.send_file(name, *rest.split("/", 1))
        else:
            self.send_failure(404, None, "Not found")

    def authorized(self, name: str) -> FakeRepo | None:
        """Return the repository, or send the failure that the real hub sends."""
        repo = self.server.repos.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is None:
            self.send_failure(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repo.tokens and token not in repo.tokens:
            self.send_failure(401, None, "Invalid credentials in Authorization header")
        else:
            return repo
        return None

    def send_info(self, name: str, revision: str) -> None:
        if (repo := self.authorized(name)) is None:
            return
        commit = repo.revisions.get(revision)
        if commit is None and revision in repo.revisions.values():
            commit = revision
        if commit is None:
            self.send_failure(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [file_info(path, content) for path, content in repo.files.items()]
        info = {"id": name, "sha": commit, "cardData": repo.card, "siblings": siblings}
        self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def send_file(self, name: str, commit: str, file: str) -> None:
        if (repo := self.authorized(name)) is None:
            return
        if repo.gated:
            self.send_failure(repo.gated, "GatedRepo", f"Access to model {name} is restricted")
        elif commit not in repo.revisions.values() or file not in repo.files:
            self.send_failure(404, "EntryNotFound", "Entry not found")
        elif file.endswith(".safetensors"):
            cdn = f"http://localhost:{self.server.server_port}/cdn/{name}/{file}"
            self.send(302, b"", {"Location": cdn, "X-Repo-Commit": commit})
        else:
            self.send_content(repo, file)

    def send_content(self, repo: FakeRepo, file: str) -> None:
        content = repo.altered.get(file, repo.files[file])
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start and start >= len(content):
            self.send_failure(416, None, "Range not satisfiable")
            return
        headers = {"ETag": '"an etag"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = repo.cuts.get(file)
        cut = cuts.pop(0) if cuts else None
        self.send(206 if start else 200, content[start:], headers, cut)

    def send(
        self, status: int, body: bytes, headers: dict[str, str], cut: Cut | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if cut is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: cut.after])
        self.close_connection = True
        if cut.how == "stall":
            self.server.stalled.set()
            self.server.ended.wait()
        elif cut.how == "reset":
            no_linger = struct.pack("ii", 1, 0)  # the client gets a reset at once
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
            self.connection.close()

    def send_failure(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send(status, b"", headers)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub for the duration of the block."""
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.ended.set()
            hub.shutdown()
            thread.join()


def download_command(
    hub: FakeHub, *options: str, **variables: str
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment of `aura download` in another process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.address, **variables}
    environment.pop("HF_HUB_DISABLE_TELEMETRY", None)
    return [sys.executable, "-m", "serve_app", "download", *options], environment


def file_info(path: str, content: bytes) -> dict[str, object]:
    """Return a file as the hub's API describes it."""
    blob = sha1(b"blob %d\0" % len(content) + content).hexdigest()
    info: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": blob}
    if path.endswith(".safetensors"):
        lfs = {"size": len(content), "sha256": sha256(content).hexdigest(), "pointerSize": 134}
        info |= {"lfs": lfs, "blobId": "0" * 40}
    return info


def hash_of(path: str, content: bytes) -> str:
    """Return the hash that a client verifies a file by."""
    info = file_info(path, content)
    lfs = info.get("lfs")
    return str(lfs["sha256"] if isinstance(lfs, dict) else info["blobId"])


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder, by its relative path."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def with_ballast(weights: bytes, size: int) -> bytes:
    """Return a safetensors file with `size` more bytes, as a tensor that may pass unread."""
    length = int.from_bytes(weights[:8], "little")
    entries, data = json.loads(weights[8 : 8 + length]), weights[8 + length :]
    ballast = {"dtype": "U8", "shape": [size], "data_offsets": [len(data), len(data) + size]}
    header = json.dumps(entries | {"vision_model.ballast": ballast}).encode()
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    return len(header).to_bytes(8, "little") + header + data + content
