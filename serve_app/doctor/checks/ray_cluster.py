"""Check Ray on this machine: the cluster that the service would join, and who can reach it.

Ray is not imported: its ports and files are probed from outside. Anyone who reaches the dashboard,
the GCS or the client port of a cluster without a token can run code on this machine
(CVE-2023-48022).
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.config.folders import started_cluster
from serve_app.config.network import LOOPBACK
from serve_app.doctor.checks.ports import Listener, find_listeners, http_get
from serve_app.doctor.finding import Finding, fail, fine, skip, warn

PORTS = {8265: "dashboard", 6379: "GCS", 10001: "client"}  # Ray's defaults
_DASHBOARD = "dashboard"
_TIMEOUT = 2.0  # seconds
_TOKEN_REQUIRED = (401, 403)
_RESTART = (
    "ray stop && ray get-auth-token --generate > /dev/null && "
    "RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1"
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What can be seen of Ray from outside."""

    address: str  # of the cluster that the service would join, "" if it would start its own
    from_environment: bool  # whether RAY_ADDRESS names it; else it was found on this machine
    responds: bool
    auth_mode: str  # RAY_AUTH_MODE
    exposed: tuple[tuple[str, Listener], ...] | None  # Ray's public ports; None if unknown
    requires_token: bool | None  # whether its dashboard does; None without a dashboard


def probe(ports: Mapping[int, str] = PORTS) -> Cluster:
    """Probe Ray on this machine; `ports` names those that belong to it."""
    setting = os.environ.get("RAY_ADDRESS", "")
    if setting in ("", "auto"):
        address = started_cluster()
    else:
        address = "" if setting == "local" else setting
    listeners = find_listeners()
    exposed = None
    if listeners is not None:
        public = [
            (ports[listener.port], listener)
            for listener in listeners
            if listener.port in ports and listener.is_public
        ]
        exposed = tuple(sorted(public, key=repr))
    return Cluster(
        address=address or (setting if setting == "auto" else ""),
        from_environment=bool(setting),
        responds=_responds(address),
        auth_mode=os.environ.get("RAY_AUTH_MODE", "").lower(),
        exposed=exposed,
        requires_token=_requires_token(ports, listeners or frozenset()),
    )


def check_cluster(cluster: Cluster) -> Finding:
    """Check that the service gets the Ray cluster that its operator expects."""
    if not cluster.address:
        return fine("ray", "the service starts and stops a cluster of its own")
    if cluster.from_environment and not cluster.responds:
        return fail(
            "ray",
            f"RAY_ADDRESS={cluster.address}, but no Ray responds at this address",
            "unset RAY_ADDRESS",
        )
    if cluster.from_environment:
        return fine(
            "ray",
            f"the cluster at {cluster.address} responds; environment variables of this shell do "
            "not reach it: put settings under `args: settings:` in the serve config",
        )
    if not cluster.responds:
        return fine(
            "ray",
            "the service starts and stops a cluster of its own; the one that ran at "
            f"{cluster.address} has ended",
        )
    return warn(
        "ray",
        f"a cluster runs at {cluster.address}, and the service would join it: environment "
        "variables of this shell would not reach its replicas",
        "RAY_ADDRESS=local aura up",
    )


def check_exposure(cluster: Cluster) -> Finding:
    """Check that other machines can't run code through Ray's ports."""
    if cluster.exposed is None:
        return skip("ray ports", "this system does not say which ports are listened on")
    if cluster.exposed:
        listed = ", ".join(
            f"{service} on {listener.address}:{listener.port}"
            for service, listener in cluster.exposed
        )
        is_guarded = cluster.requires_token
        if is_guarded is None:
            is_guarded = cluster.auth_mode == "token"
        if not is_guarded:
            return fail(
                "ray ports",
                f"other machines reach Ray's {listed} without a token, and can run code on this "
                "machine",
                _RESTART,
            )
        return fine("ray ports", f"other machines reach Ray's {listed}, which require a token")
    if cluster.auth_mode == "disabled":
        return warn(
            "ray ports",
            "RAY_AUTH_MODE=disabled: anyone who reaches the ports of the service's own Ray can run "
            "code on this machine",
            "unset RAY_AUTH_MODE",
        )
    return fine("ray ports", "other machines reach none of Ray's ports")


def _responds(address: str) -> bool:
    """Return whether a TCP connection to an address can be opened."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT):
            return True
    except (OSError, OverflowError):
        return False


def _requires_token(ports: Mapping[int, str], listeners: frozenset[Listener]) -> bool | None:
    """Return whether the dashboard requires a token; None without a dashboard."""
    dashboards = {listener.port for listener in listeners if ports.get(listener.port) == _DASHBOARD}
    if not dashboards:
        return None
    response = http_get(LOOPBACK, min(dashboards), "/api/version")
    return response is not None and response[0] in _TOKEN_REQUIRED
