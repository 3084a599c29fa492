"""Which ports of this machine somebody listens on, and whether the service's own is free.

Knows no Ray. Asks this machine alone: the kernel's tables, and the port itself.
"""

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from pathlib import Path

from serve_app.config.serve_config import LOOPBACK, check_port
from serve_app.core.errors import SettingsError
from serve_app.doctor.finding import Finding, fail, fine, warn

_TABLES = ("tcp", "tcp6")
_LISTEN = "0A"
_PATIENCE = 1.0  # seconds
_TRIES = 50  # ports looked at for a free one
_ANY = {"0.0.0.0": LOOPBACK, "::": "::1"}


@dataclass(frozen=True, slots=True)
class Listener:
    """An address and a port that somebody listens on."""

    address: str
    port: int

    @property
    def is_open(self) -> bool:
        """Whether other machines may reach it."""
        return not ip_address(self.address).is_loopback


def listeners() -> frozenset[Listener] | None:
    """Everything that listens here; None where the kernel has no table of it."""
    if sys.platform != "linux":
        return None
    found: set[Listener] = set()
    for table in _TABLES:
        with suppress(OSError):
            found |= read_table((Path("/proc/net") / table).read_text().splitlines()[1:])
    return frozenset(found)


def read_table(lines: Iterable[str]) -> set[Listener]:
    """The listeners in lines of /proc/net/tcp and tcp6."""
    rows = (line.split() for line in lines)
    return {_listener(row[1]) for row in rows if row[3] == _LISTEN}


def _listener(text: str) -> Listener:
    """Of an address as the kernel prints it: words of four bytes in its own order, in hex."""
    host, _, port = text.partition(":")
    words = [host[n : n + 8] for n in range(0, len(host), 8)]
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    address = ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return Listener(str(mapped or address), int(port, 16))


def check_service_port(host: str, port: int) -> Finding:
    """Whether the service could listen where it is to."""
    try:
        check_port(host, port)
    except SettingsError as error:
        mend = f"BACKEND_PORT={_free_port(host, port)} aura up"
        if _is_ours(host, port):
            said = f"Aura Serve runs on {host}:{port} already: a second one needs another port"
            return warn("port", said, mend)
        said, _, _ = str(error).partition(". Choose another")
        return fail("port", said, mend)
    return fine("port", f"{host}:{port} is free")


def ask(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """The status and the body of a GET over plain HTTP; None without an answer in a second."""
    connection = HTTPConnection(_ANY.get(host, host), port, timeout=_PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 16)
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _is_ours(host: str, port: int) -> bool:
    answer = ask(host, port, "/livez")
    with suppress(ValueError):
        return answer is not None and json.loads(answer[1]) == {"status": "alive"}
    return False


def _free_port(host: str, port: int) -> int:
    """The next one that is free, after the least that needs no rights."""
    first = max(port, 1023) + 1
    for candidate in range(first, min(first + _TRIES, 65536)):
        with suppress(SettingsError):
            check_port(host, candidate)
            return candidate
    return 4000
