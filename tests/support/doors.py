"""The doors as the table of `door_situations` sees them: how each is sent a request and read.

A further door is one more entry of `DOORS`. One whose requests, images or refusals have another
form than a body of fields and an HTTP status overrides `body`, `succeeded` or `read`. What opens
a door that is closed by default stands in `OPEN`.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.api import ORIGIN
from tests.support.door_situations import CONFLICT, Situation
from tests.support.mcp_client import ACCEPT, MCP, error_of, messages_of, tool_call

Body = dict[str, Any]
_SAME_HEADERS = (
    "retry-after",
    "x-should-retry",
    "www-authenticate",
    "access-control-allow-origin",
)


@dataclass(frozen=True)
class Refusal:
    """What a door says: all but `parts` is alike at every door, but for the names of fields.

    A header that its protocol can't tell is not among the `headers`.
    """

    status: int
    code: str
    message: str
    parts: Set[str]
    headers: Mapping[str, str | None]

    @property
    def retry_after(self) -> int | None:
        """The seconds after which the caller should come again; None if nothing says so."""
        seconds = self.headers.get("retry-after")
        return None if seconds is None else int(seconds)

    @property
    def is_final(self) -> bool:
        """Whether programs should not send the request again by themselves."""
        return self.headers.get("x-should-retry") == "false"

    def check_consistency(self) -> None:
        """Check that a program can follow what the headers say, whichever it reads."""
        may_pass = self.status in (429, 503, 504) and not self.is_final
        assert (self.retry_after is not None) == may_pass
        assert (self.headers["www-authenticate"] is not None) == (self.status == 401)
        is_ours = self.code != "FORBIDDEN_ORIGIN"
        assert self.headers["access-control-allow-origin"] == (ORIGIN if is_ours else None)


def check_alike(refusals: Sequence[Refusal]) -> None:
    """Check that no header differs between doors."""
    for name in _SAME_HEADERS:
        values = {refusal.headers[name] for refusal in refusals if name in refusal.headers}
        assert len(values) <= 1, (name, values)


def _two_fields(width: int, height: int) -> Body:
    return {"width": width, "height": height}


@dataclass(frozen=True)
class DoorAdapter:
    """A door's way to make images from a prompt.

    `names` are those of its fields, by the native ones, and `size` writes a width and a height;
    `status` is that of a success. The object of an error has the keys `parts`, which its clients
    read; it is the body itself, or stands below the key `envelope`. `headers` are those of every
    request. `skipped` are situations that its protocol does not have, with the reasons.
    """

    path: str
    status: int
    names: Mapping[str, str]
    parts: frozenset[str]
    envelope: str = ""
    size: Callable[[int, int], Body] = _two_fields
    code: str = "code"
    message: str = "message"
    headers: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def body(self, **fields: Any) -> Body:
        """Return the JSON of a request with these fields, given by their native names."""
        body: Body = {"prompt": "a fox"}
        for name, value in fields.items():
            if name == "size":
                body |= self.size(*value)
                continue
            *parents, last = self.names.get(name, name).split(".")
            target = body
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value
        return body

    async def send(self, http: httpx.AsyncClient, situation: Situation) -> httpx.Response:
        """Send what a situation says, once."""
        content: dict[str, Any] = {"json": self.body(**situation.fields)}
        if situation.content is not None:
            content = {"content": situation.content}
        if situation.method != "POST":
            content = {}
        headers = {"Origin": ORIGIN, **self.headers, **situation.headers}
        path = self.path + situation.below
        return await http.request(situation.method, path, headers=headers, **content)

    def succeeded(self, answer: httpx.Response) -> bool:
        """Return whether an answer has images."""
        return answer.status_code == self.status

    def error(self, answer: httpx.Response) -> Body:
        """Return the object that says what is wrong."""
        body: Body = answer.json()
        error: Body = body[self.envelope] if self.envelope else body
        return error

    def read(self, answer: httpx.Response) -> Refusal:
        """Return what a refusal says, whatever its form."""
        error = self.error(answer)
        headers = {name: answer.headers.get(name) for name in _SAME_HEADERS}
        return Refusal(
            answer.status_code, error[self.code].upper(), error[self.message], set(error), headers
        )


@dataclass(frozen=True)
class McpAdapter(DoorAdapter):
    """The tool `generate` of the MCP door, whose refusals are results of the call.

    What comes before its message is read is an error of JSON-RPC under an HTTP status.
    """

    def body(self, **fields: Any) -> Body:
        """Return the message that calls the tool."""
        return tool_call("generate", super().body(**fields))

    def succeeded(self, answer: httpx.Response) -> bool:
        """Return whether the result has images."""
        return not messages_of(answer)[-1]["result"]["isError"]

    def read(self, answer: httpx.Response) -> Refusal:
        """Return what an error or a result says, with the headers that other doors would send."""
        message = messages_of(answer)[-1]
        headers = {name: answer.headers.get(name) for name in _SAME_HEADERS}
        if "error" in message:
            error = message["error"]
            data = error["data"]
            parts = self.parts & data.keys()
            return Refusal(answer.status_code, data["code"], error["message"], parts, headers)
        error = error_of(message["result"])
        seconds = error["retry_after_seconds"]
        headers["retry-after"] = None if seconds is None else str(seconds)
        headers["x-should-retry"] = "false" if error["is_final"] else None
        if error["status"] in _WRONG:  # final here, and no program sends those again by itself
            assert error["is_final"]
            del headers["x-should-retry"]
        parts = self.parts & error.keys()
        return Refusal(error["status"], error["code"], error["message"], parts, headers)


_WRONG = (400, 403, 404, 422)
OPEN: Mapping[str, Any] = {"mcp": True}  # options of a client that all doors are open to
DOORS: dict[str, DoorAdapter] = {
    "native": DoorAdapter(
        "/generate",
        201,
        {"guidance": "guidanceScale", "count": "imageCount", "timeout": "timeoutSeconds"},
        frozenset({"code", "message", "details", "requestId"}),
        "error",
    ),
    "openai": DoorAdapter(
        "/v1/images/generations",
        200,
        {
            "guidance": "guidance_scale",
            "count": "n",
            "steps": "num_inference_steps",
            "timeout": "timeoutSeconds",
        },
        frozenset({"message", "type", "param", "code"}),
        "error",
        size=lambda width, height: {"size": f"{width}x{height}"},
    ),
    "a1111": DoorAdapter(
        "/sdapi/v1/txt2img",
        200,
        {
            "guidance": "cfg_scale",
            "count": "batch_size",
            "model": "override_settings.sd_model_checkpoint",
            "sampler": "sampler_name",
        },
        frozenset({"error", "detail", "body", "errors"}),
        code="error",
        message="detail",
        skipped=dict.fromkeys(
            ("a deadline before a call", "a deadline that ends a call"),
            "a request can't say how long it may take",
        ),
    ),
    "mcp": McpAdapter(
        MCP,
        200,
        {"guidance": "guidance_scale", "count": "image_count", "timeout": "timeout_seconds"},
        frozenset({"code", "details", "request_id"}),
        headers=ACCEPT,
        skipped=dict.fromkeys(
            ("no ledger for a key", CONFLICT), "a call has no idempotency key: it is not sent again"
        )
        | {"no such route": "there is one path, and nothing below it"},
    ),
}
WITH_KEYS = [name for name, door in DOORS.items() if CONFLICT not in door.skipped]
