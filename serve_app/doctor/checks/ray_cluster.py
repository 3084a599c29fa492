"""Ray on this machine: the cluster that the service would join, and whether strangers reach it.

Knows no Ray: its ports and files are looked at from outside. Whoever reaches the dashboard, the GCS
or the client port of a cluster without a token runs code on this machine (CVE-2023-48022).
"""

import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.config.serve_config import LOOPBACK
from serve_app.doctor.checks.ports import Listener, ask, listeners
from serve_app.doctor.finding import Finding, fail, fine, skip, warn

PORTS = {8265: "dashboard", 6379: "GCS", 10001: "client"}  # Ray's own, by default
_DASHBOARD = "dashboard"
_PATIENCE = 2.0  # seconds
_GUARDED = (401, 403)
_RESTART = (
    "ray stop && ray get-auth-token --generate > /dev/null && "
    "RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1"
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What can be seen of Ray from outside."""

    address: str  # of the cluster that would be joined, "" when a new one would start
    named: bool  # whether RAY_ADDRESS says so, rather than a cluster that runs here
    answers: bool
    auth_mode: str  # RAY_AUTH_MODE
    exposed: tuple[tuple[str, Listener], ...] | None  # what of Ray's listens to all; None: unknown
    guarded: bool | None  # whether its dashboard asks for a token; None without a dashboard


def probe(ports: Mapping[int, str] = PORTS) -> Cluster:
    """Ray as it can be seen from here."""
    named = os.environ.get("RAY_ADDRESS", "")
    address = _current() if named in ("", "auto") else "" if named == "local" else named
    there = listeners()
    exposed = None
    if there is not None:
        ours = [(ports[one.port], one) for one in there if one.port in ports]
        exposed = tuple(sorted((pair for pair in ours if pair[1].is_open), key=repr))
    return Cluster(
        address=address or (named if named == "auto" else ""),
        named=bool(named),
        answers=_answers(address),
        auth_mode=os.environ.get("RAY_AUTH_MODE", "").lower(),
        exposed=exposed,
        guarded=_is_guarded(ports, there or frozenset()),
    )


def check_cluster(cluster: Cluster) -> Finding:
    """Whether the service gets the Ray that its operator thinks of."""
    if not cluster.address:
        return fine("ray", "a cluster of its own, started and ended with the service")
    if cluster.named and not cluster.answers:
        return fail(
            "ray",
            f"RAY_ADDRESS={cluster.address}, but no Ray answers there",
            "unset RAY_ADDRESS",
        )
    if cluster.named:
        return fine(
            "ray",
            f"the cluster at {cluster.address} answers; this shell's environment does not reach "
            "it: settings belong under `args: settings:` of the config",
        )
    if not cluster.answers:
        return fine("ray", f"a cluster of its own; the one noted at {cluster.address} is gone")
    return warn(
        "ray",
        f"a cluster runs at {cluster.address}, and the service would join it: this shell's "
        "environment would not reach its replicas",
        "RAY_ADDRESS=local aura up",
    )


def check_exposure(cluster: Cluster) -> Finding:
    """Whether strangers could give Ray orders."""
    if cluster.exposed is None:
        return skip("ray ports", "which ports listen can't be told on this system")
    if cluster.exposed:
        told = ", ".join(f"{what} on {one.address}:{one.port}" for what, one in cluster.exposed)
        guarded = cluster.auth_mode == "token" if cluster.guarded is None else cluster.guarded
        if not guarded:
            return fail(
                "ray ports",
                f"other machines reach Ray's {told} without a token, and may run code here",
                _RESTART,
            )
        return fine("ray ports", f"other machines reach Ray's {told}, which asks for a token")
    if cluster.auth_mode == "disabled":
        return warn(
            "ray ports",
            "RAY_AUTH_MODE=disabled: whoever reaches the ports of the service's own Ray may run "
            "code here",
            "unset RAY_AUTH_MODE",
        )
    return fine("ray ports", "none is open to other machines")


def _current() -> str:
    """The address of a cluster that `ray start` noted on this machine."""
    home = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        return (Path(home) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _answers(address: str) -> bool:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PATIENCE):
            return True
    except (OSError, OverflowError):
        return False


def _is_guarded(ports: Mapping[int, str], there: frozenset[Listener]) -> bool | None:
    for port in sorted({one.port for one in there if ports.get(one.port) == _DASHBOARD}):
        answer = ask(LOOPBACK, port, "/api/version")
        return answer is not None and answer[0] in _GUARDED
    return None
