"""A hub on loopback: it speaks what huggingface_hub asks of the real one, and can do it badly.

Repositories are dictionaries of files. Large files (*.safetensors) are redirected to another
origin, as the real hub does. Everything that was asked stands in a log.
"""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LATER = "facade" + "0" * 34
BASE = "stabilityai/stable-diffusion-xl-base-1.0"
REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"


@dataclass
class Cut:
    """An answer that ends before its time: after so many bytes of its body."""

    after: int
    how: str  # close, reset, or stall


@dataclass
class Shelf:
    """One repository, and what is wrong with it."""

    files: dict[str, bytes]
    card: dict[str, object] = field(default_factory=lambda: {"license": "openrail++"})
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: int | None = None  # the status of its files
    tokens: tuple[str, ...] = ()  # what opens it, when not everything does
    altered: dict[str, bytes] = field(default_factory=dict)  # sent instead
    cuts: dict[str, list[Cut]] = field(default_factory=dict)  # of the answers to come


@dataclass(frozen=True)
class Request:
    path: str
    range: str | None
    authorization: str | None


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.shelves: dict[str, Shelf] = {}
        self.log: list[Request] = []
        self.ended = threading.Event()
        self.says: str | None = None  # one page for every address, as behind a login
        self.silent = False
        self.refuses: int | None = None  # the status of every answer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked_for(self, path: str) -> list[str | None]:
        """The Range of each request that was answered with bytes of the file."""
        return [r.range for r in self.log if r.path.startswith("/cdn/") and r.path.endswith(path)]

    def fetched(self) -> set[str]:
        """The paths of all files that were asked for."""
        return {r.path.split("/resolve/")[1][41:] for r in self.log if "/resolve/" in r.path}


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    server: Hub

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        self.server.log.append(Request(path, headers.get("Range"), headers.get("Authorization")))
        if self.server.silent:
            self.server.ended.wait()
        elif self.server.refuses:
            self.refuse(self.server.refuses, None, "come back later")
        elif self.server.says is not None:
            self.send(200, self.server.says.encode(), {"Content-Type": "text/html"})
        elif path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self.describe(name, revision)
        elif path.startswith("/cdn/"):
            _, _, owner, repository, file = path.split("/", 4)
            self.content(self.server.shelves[f"{owner}/{repository}"], file)
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            self.resolve(name, *rest.split("/", 1))
        else:
            self.refuse(404, None, "Not found")

    def opened(self, name: str) -> Shelf | None:
        shelf = self.server.shelves.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if shelf is None:
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif shelf.tokens and token not in shelf.tokens:
            self.refuse(401, None, "Invalid credentials in Authorization header")
        else:
            return shelf
        return None

    def describe(self, name: str, revision: str) -> None:
        if (shelf := self.opened(name)) is None:
            return
        commit = shelf.revisions.get(revision)
        if commit is None and revision in shelf.revisions.values():
            commit = revision
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [described(path, content) for path, content in shelf.files.items()]
        facts = {"id": name, "sha": commit, "cardData": shelf.card, "siblings": siblings}
        self.send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def resolve(self, name: str, commit: str, file: str) -> None:
        if (shelf := self.opened(name)) is None:
            return
        if shelf.gated:
            self.refuse(shelf.gated, "GatedRepo", f"Access to model {name} is restricted")
        elif commit not in shelf.revisions.values() or file not in shelf.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
        elif file.endswith(".safetensors"):
            there = f"http://localhost:{self.server.server_port}/cdn/{name}/{file}"
            self.send(302, b"", {"Location": there, "X-Repo-Commit": commit})
        else:
            self.content(shelf, file)

    def content(self, shelf: Shelf, file: str) -> None:
        content = shelf.altered.get(file, shelf.files[file])
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start and start >= len(content):
            self.refuse(416, None, "Range not satisfiable")
            return
        headers = {"ETag": '"an etag"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = shelf.cuts.get(file)
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
            self.server.ended.wait()
        elif cut.how == "reset":
            gone = struct.pack("ii", 1, 0)  # lingers not at all: the peer gets a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, gone)
            self.connection.close()

    def refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send(status, b"", headers)


def described(path: str, content: bytes) -> dict[str, object]:
    """A file as the hub's API has it."""
    blob = sha1(b"blob %d\0" % len(content) + content).hexdigest()
    facts: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": blob}
    if path.endswith(".safetensors"):
        lfs = {"size": len(content), "sha256": sha256(content).hexdigest(), "pointerSize": 134}
        facts |= {"lfs": lfs, "blobId": "0" * 40}
    return facts


def read(folder: Path) -> dict[str, bytes]:
    """A folder as the files of a repository."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def weights(size: int, name: str = "w") -> bytes:
    """A safetensors file with so many bytes of data."""
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({name: entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(256)) * (size // 256)


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.ended.set()
            hub.shutdown()
            thread.join()
