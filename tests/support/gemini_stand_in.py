"""A server of this machine that speaks `generateContent`, as the Gemini API's reference has it.

It refuses what the API would refuse: an unknown field, a wrong key, an unknown model. The official
SDK talks to it in `tests/cloud/test_stand_in.py`, so that it is not only our own idea of the API.
"""

import json
import select
import threading
import time
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

from PIL import Image
from pydantic import SecretStr

from serve_app.cloud.gemini_options import GeminiOptions

KEY = "AIza-stand-in-0123456789-canary"
MODEL = "gemini-nano-banana-2.1"
RATIOS = {"1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1"} | {
    "9:16",
    "16:9",
    "21:9",
}
_CONFIG_FIELDS = {"responseModalities", "imageConfig", "candidateCount", "temperature"}
_WATCH_S = 0.02  # between two looks whether the client is still there


def picture(kind: str = "PNG", size: tuple[int, int] = (96, 64), colour: str = "orange") -> bytes:
    """Return an image file."""
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def image_part(file: bytes, mime_type: str = "image/png") -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime_type, "data": b64encode(file).decode()}}


def answer_of(*parts: Mapping[str, Any], reason: str = "STOP") -> dict[str, Any]:
    """Return a whole answer of these parts."""
    return {
        "candidates": [
            {"content": {"role": "model", "parts": list(parts)}, "finishReason": reason}
        ],
        "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 1299},
        "modelVersion": MODEL,
    }


def error_of(code: int, status: str, *details: Mapping[str, Any]) -> "Reply":
    """Return an error response in Google's form, with a text that must go nowhere."""
    text = f"secret advice for the owner of {KEY}"
    error = {"code": code, "message": text, "status": status, "details": list(details)}
    return Reply(code, json.dumps({"error": error}).encode())


@dataclass(frozen=True)
class Reply:
    """One response. `lacks` bytes of its body are announced and never sent."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    lacks: int = 0
    content_type: str = "application/json"


def made(*parts: Mapping[str, Any], reason: str = "STOP") -> Reply:
    """Return a success."""
    return Reply(body=json.dumps(answer_of(*parts, reason=reason)).encode())


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def parts(self) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = self.body["contents"][0]["parts"]
        return parts

    @property
    def image(self) -> Image.Image:
        """The input image, which must come first."""
        data = self.parts[0]["inlineData"]["data"].replace("+", "-").replace("/", "_")
        image = Image.open(BytesIO(urlsafe_b64decode(data)))
        image.load()
        return image


class GeminiStandIn(ThreadingHTTPServer):
    """Answers the next calls with `replies`, then with a PNG of one colour.

    While `may_answer` is not set, calls wait; `hangups` counts those whose client left meanwhile.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[Call] = []
        self.looked_up: list[str] = []
        self.replies: list[Reply] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.lock = threading.Lock()
        self.running = 0
        self.most_running = 0
        self.hangups = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def options(self, **changes: Any) -> GeminiOptions:
        """Return how it is reached; a call that is made again is made at once."""
        usual: dict[str, Any] = {
            "api_key": SecretStr(KEY),
            "model": MODEL,
            "base_url": self.url,
            "timeout_s": 20.0,
            "retry_pause_s": 0.01,
        }
        return GeminiOptions(**(usual | changes))


class _Handler(BaseHTTPRequestHandler):
    server: GeminiStandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.looked_up.append(self.path)
        if problem := self._refusal(f"/v1beta/models/{MODEL}"):
            self._send(problem)
        else:
            self._send(Reply(body=json.dumps({"name": f"models/{MODEL}"}).encode()))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.calls.append(Call(self.path, dict(self.headers), body))
            server.running += 1
            server.most_running = max(server.most_running, server.running)
            reply = server.replies.pop(0) if server.replies else made(image_part(picture()))
        try:
            refusal = self._refusal(f"/v1beta/models/{MODEL}:generateContent") or illegal_body(body)
            if self._wait():
                self._send(refusal or reply)
        finally:
            with server.lock:
                server.running -= 1

    def _refusal(self, path: str) -> Reply | None:
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
        if self.headers.get("x-goog-api-key") != KEY:
            return error_of(400, "INVALID_ARGUMENT", reason)
        return None if self.path == path else error_of(404, "NOT_FOUND")

    def _wait(self) -> bool:
        """Return whether the client still waits when the call may be answered."""
        while not self.server.may_answer.is_set():
            readable, _, _ = select.select([self.connection], [], [], _WATCH_S)
            if readable:  # which its end is, since it has sent all
                with self.server.lock:
                    self.server.hangups += 1
                self.close_connection = True
                return False
        return True

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body) + reply.lacks))
        self.end_headers()
        self.wfile.write(reply.body)
        if reply.lacks:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...


def illegal_body(body: Mapping[str, Any]) -> Reply | None:
    """Return the refusal of a body that the API would not take."""
    config = body.get("generationConfig", {})
    image = config.get("imageConfig", {})
    known = {"contents", "generationConfig", "safetySettings", "systemInstruction"}
    is_legal = (
        set(body) <= known
        and set(config) <= _CONFIG_FIELDS
        and set(image) <= {"aspectRatio", "imageSize"}
        and image.get("aspectRatio", "1:1") in RATIOS
        and image.get("imageSize", "1K") in {"1K", "2K", "4K"}
        and all(
            len(part) == 1 and set(part) <= {"text", "inlineData"}
            for content in body["contents"]
            for part in content["parts"]
        )
    )
    return None if is_legal else error_of(400, "INVALID_ARGUMENT")


@contextmanager
def gemini_stand_in() -> Iterator[GeminiStandIn]:
    """Run a server for the duration of the block."""
    with GeminiStandIn() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.may_answer.set()
            server.shutdown()
            thread.join()


def in_seconds(seconds: float) -> str:
    """Return an HTTP date so many seconds from now."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + seconds))
