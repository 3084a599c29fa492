"""The MCP door: JSON-RPC's error shape, and what the message's fields mean."""

from collections.abc import Mapping
from typing import Any

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.door import Door, ErrorResponse
from serve_app.ingress.field_docs import FieldDoc
from serve_app.ingress.mcp.arguments import WIRE_NAMES
from serve_app.ingress.mcp.rerun import GENERATE, PATH, RERUN_FORMAT
from serve_app.ingress.mcp.routes import router
from serve_app.ingress.validation import field_error

_OTHER = -32000  # of those that JSON-RPC leaves to a server
_CODES = {  # JSON-RPC 2.0, section 5.1
    "INVALID_JSON": -32700,
    "VALIDATION_ERROR": -32600,
    "INTERNAL": -32603,
}
_DOCS = {
    "jsonrpc": FieldDoc("The version of JSON-RPC, which is 2.0.", "2.0"),
    "method": FieldDoc("A method of the protocol, as `tools/list` or `tools/call`.", "tools/list"),
    "id": FieldDoc("What the answer is known by; a notification has none. Default: absent.", 1),
    "params": FieldDoc("What the method takes. Default: absent.", {}),
}


def error_body(error: ErrorResponse, request_id: str) -> dict[str, Any]:
    """Return the JSON-RPC error of what was refused before its message was read."""
    details = [{"path": path, "message": problem} for path, problem in error.details]
    return {
        "jsonrpc": "2.0",
        "id": None,
        "error": {
            "code": _CODES.get(error.code, _OTHER),
            "message": error.message,
            "data": {"code": error.code, "details": details, "request_id": request_id},
        },
    }


def body_examples(info: ServiceInfo) -> Mapping[str, Mapping[str, Any]]:
    """Return the examples of the message."""
    message = {"jsonrpc": "2.0", "id": 1}
    arguments = {"prompt": "a large yellow star on a black background", "seed": 7}
    call = {"method": "tools/call", "params": {"name": GENERATE, "arguments": arguments}}
    return {
        PATH: {
            "tools": {"summary": "The tools", "value": message | {"method": "tools/list"}},
            "image": {"summary": "An image", "value": message | call},
        }
    }


MCP = Door(
    router=router,
    error_body=error_body,
    field_error=field_error,
    wire_names=WIRE_NAMES,
    field_docs=_DOCS,
    body_examples=body_examples,
    rerun_formats=(RERUN_FORMAT,),
)
