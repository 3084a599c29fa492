"""A client that reads a job's events over HTTP."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

Event = tuple[str, dict[str, Any]]


@contextmanager
def events(method: str, url: str, body: dict[str, Any] | None = None) -> Iterator[Iterator[Event]]:
    """Yield the names and the data of a stream's events; leaving the context closes it."""
    with httpx.stream(method, url, json=body, timeout=180) as response:
        assert response.status_code == 200, response.read()
        yield _read(response)


def _read(response: httpx.Response) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields["event"], json.loads(fields["data"])
            fields = {}
