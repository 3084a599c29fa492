"""Gemini's error responses, as errors of ours.

By status and by the names that Google gives errors (`google.rpc.Code`, `ErrorInfo`, `RetryInfo`);
their texts are for the key's owner and are never repeated.
"""

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from serve_app.core.capacity.virtual_queue import bounded_retry
from serve_app.core.cloud_errors import WastedCall
from serve_app.core.errors import AuraError, ModelUnavailable, UpstreamError

RETRIABLE = frozenset({500, 502, 503})  # which cost nothing, and may pass in a second
TOO_MANY = 429
_NAME = re.compile(r"[A-Z_]{1,40}")
_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s?")
_KEY_REASON = "API_KEY_"  # how `ErrorInfo` names begin that blame the key


def error_of(status: int, content: bytes) -> AuraError:
    """Return what a response that is no success means, other than that there were too many."""
    name, reasons = _names(content)
    if status in (401, 403) or any(reason.startswith(_KEY_REASON) for reason in reasons):
        return ModelUnavailable(
            f"the cloud refuses this service's key ({status})",
            remedy="The operator must put a valid key into GEMINI_API_KEY, and start again",
        )
    if status == 404:
        return ModelUnavailable(
            "the cloud has no model of the configured name",
            remedy="The operator must set GEMINI_MODEL to one that the key may use",
        )
    if name == "FAILED_PRECONDITION":
        return ModelUnavailable(
            "the cloud does not serve this service's account",
            remedy="The operator must look at its billing, and whether its country is served",
        )
    if 300 <= status < 400:
        return WastedCall(f"the cloud redirects ({status}), which is not followed")
    kind = UpstreamError if status in RETRIABLE else WastedCall
    return kind(f"the cloud failed ({' '.join(filter(None, (str(status), name)))})")


def retry_seconds(header: str | None, content: bytes) -> int | None:
    """Return the seconds after which a refused call may be made again; None if nothing says so.

    The header counts before `RetryInfo`; it has seconds or a date (RFC 9110, section 10.2.3).
    """
    texts = [header.strip()] if header else []
    texts += [str(detail.get("retryDelay", "")) for detail in _details(content)]
    for text in texts:
        if match := _SECONDS.fullmatch(text):
            return bounded_retry(float(match[1]))
        try:
            until = parsedate_to_datetime(text)
            left = until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)
        except (ValueError, OverflowError):
            continue
        return bounded_retry(left.total_seconds())
    return None


def _names(content: bytes) -> tuple[str, list[str]]:
    """Return the name of an error's code, "" if it has none, and the reasons of its details."""
    status = _error(content).get("status")
    name = status if isinstance(status, str) and _NAME.fullmatch(status) else ""
    return name, [str(detail.get("reason", "")) for detail in _details(content)]


def _details(content: bytes) -> list[dict[str, Any]]:
    details = _error(content).get("details")
    return [d for d in details if isinstance(d, dict)] if isinstance(details, list) else []


def _error(content: bytes) -> dict[str, Any]:
    try:
        error = json.loads(content)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}
