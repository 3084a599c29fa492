"""Which ports of this machine are listened on, and whether the service's own port is free.

No Ray. Contacts this machine only.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address

import psutil

from serve_app.config.listening import check_metrics_port, check_port, next_port
from serve_app.config.network import LOOPBACK
from serve_app.core.errors import SettingsError
from serve_app.doctor.finding import Finding, fail, fine, problem_of, warn

_TIMEOUT = 1.0  # seconds
_MAX_TRIES = 50  # ports tried for a free one
_MAX_BODY = 1 << 16  # bytes read of a response
_CONNECT_TO = {"0.0.0.0": LOOPBACK, "::": "::1"}  # for addresses that mean every interface


@dataclass(frozen=True, slots=True)
class Listener:
    """An address and a port that a process listens on."""

    address: str
    port: int

    @property
    def is_public(self) -> bool:
        """Whether other machines may reach it."""
        return not ip_address(self.address).is_loopback


def find_listeners() -> frozenset[Listener] | None:
    """Return everything that listens on TCP; None if the system does not say, as macOS."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    return frozenset(
        Listener(_unmapped(connection.laddr.ip), connection.laddr.port)
        for connection in connections
        if connection.laddr and connection.status == psutil.CONN_LISTEN
    )


def check_service_port(host: str, port: int) -> Finding:
    """Check that the service can listen on its address."""
    try:
        check_port(host, port)
    except SettingsError as error:
        if error.variable == "HOST":
            return fail("port", problem_of(error), f"HOST={LOOPBACK}")
        fix = f"BACKEND_PORT={_free_port(host, port)} aura up"
        if is_aura(host, port):
            return warn(
                "port",
                f"Aura Serve already runs on {host}:{port}: a second one needs another port",
                fix,
            )
        return fail("port", problem_of(error), fix)
    return fine("port", f"{host}:{port} is free")


def check_metrics(metrics_port: int | None, service_port: int) -> Finding:
    """Check that metrics can be shown on METRICS_PORT."""
    if metrics_port is None:
        return fine("metrics port", "METRICS_PORT is empty: no metrics are shown")
    try:
        check_metrics_port(metrics_port, service_port)
    except SettingsError as error:
        other = _free_port(LOOPBACK, max(metrics_port, service_port))
        fix = f"METRICS_PORT={other} aura up"
        if metrics_port != service_port and _shows_metrics(metrics_port):
            message = (
                f"METRICS_PORT={metrics_port} shows the metrics of a service that runs already"
            )
            return warn("metrics port", message, fix)
        return fail("metrics port", problem_of(error), fix)
    return fine("metrics port", f"{LOOPBACK}:{metrics_port} is free")


def http_get(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Return the status and body of a plain HTTP response; None without one within a second."""
    connection = HTTPConnection(_CONNECT_TO.get(host, host), port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(_MAX_BODY)
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _unmapped(address: str) -> str:
    """Return an IPv4 address that is written as IPv6 (::ffff:127.0.0.1) as itself."""
    mapped = getattr(ip_address(address), "ipv4_mapped", None)
    return str(mapped or address)


def is_aura(host: str, port: int) -> bool:
    """Return whether an Aura Serve answers on a port."""
    response = http_get(host, port, "/livez")
    with suppress(ValueError):
        return response is not None and json.loads(response[1]) == {"status": "alive"}
    return False


def _shows_metrics(port: int) -> bool:
    """Return whether the metrics of a Ray are on a port."""
    response = http_get(LOOPBACK, port, "/metrics")
    return response is not None and b"ray_" in response[1]


def _free_port(host: str, port: int) -> int:
    """Return the next free port that needs no privileges."""
    candidate = next_port(port)
    for _ in range(_MAX_TRIES):
        with suppress(SettingsError):
            check_port(host, candidate)
            break
        candidate = next_port(candidate)
    return candidate
