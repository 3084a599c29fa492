"""Where the service listens, by its settings and its serve config, and whether it may and can.

A setting wins over the serve config's `http_options`, and that over the default. `serve run` reads
`http_options` alone. No Ray, so that a problem is reported before Ray starts.
"""

import errno
import socket
from collections.abc import Mapping
from typing import Any

from serve_app.config.network import (
    LOOPBACK,
    bind_error,
    is_loopback,
    machine_addresses,
    netloc,
    reachable_addresses,
)
from serve_app.config.settings import Settings
from serve_app.core.errors import SettingsError

NEW_KEY = (
    "python -c \"import secrets; print('\\nAPI_KEYS=' + secrets.token_urlsafe(24))\" >> .env.local"
)
_FIRST_UNPRIVILEGED, _LAST_PORT, _USUAL_PORT = 1024, 65535, 4000
_RAY_PORTS = {8265: "dashboard", 52365: "dashboard agent"}  # of a Ray that `up` starts
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def port_of(settings: Settings, http: Mapping[str, Any]) -> int:
    """Return the port: BACKEND_PORT if it is set, else the config's, else the default."""
    if "backend_port" in settings.model_fields_set:
        return settings.backend_port
    return int(http.get("port", settings.backend_port))


def host_of(settings: Settings, http: Mapping[str, Any]) -> str:
    """Return the address to listen on: HOST if it is set, else the config's, else the default."""
    if "host" in settings.model_fields_set:
        return settings.host
    return str(http.get("host") or settings.host)


def check_listening(settings: Settings, http: Mapping[str, Any]) -> None:
    """Check that the service may and can listen on its address now. Raises `SettingsError`."""
    host, port = host_of(settings, http), port_of(settings, http)
    check_host(settings, http)
    check_port(host, port)
    check_metrics_port(settings.metrics_port, port)


def check_host(settings: Settings, http: Mapping[str, Any]) -> None:
    """Check that only this machine reaches the service, or that others need a key.

    Raises `SettingsError`.
    """
    host = host_of(settings, http)
    if is_loopback(host) or settings.is_public:
        return
    in_settings = "host" in settings.model_fields_set
    raise SettingsError(
        "lets other machines in, and API_KEYS is empty",
        "HOST",
        subject=f"HOST={host}" if in_settings else f"host {host} of the serve config",
        remedy=f"Make a key: {NEW_KEY}. Or set HOST={LOOPBACK}, for this machine alone",
    )


def check_port(host: str, port: int) -> None:
    """Check that the service can listen now. Raises `SettingsError`."""
    if reserved := _reserved(port):
        raise _unusable("BACKEND_PORT", port, f" ({reserved})", next_port(port))
    error = bind_error(host, port)
    if error is None:
        return
    if isinstance(error, socket.gaierror) or error.errno in _NO_SUCH_ADDRESS:
        raise SettingsError(
            "is not an address of this machine",
            "HOST",
            subject=f"HOST={host}",
            remedy=f"It has {', '.join(machine_addresses())}; 0.0.0.0 is all of them",
        )
    raise _unusable("BACKEND_PORT", port, f" on {host} ({error.strerror})", next_port(port))


def check_metrics_port(metrics_port: int | None, service_port: int) -> None:
    """Check that METRICS_PORT is free and not the service's own. Raises `SettingsError`."""
    if metrics_port is None:
        return
    error = bind_error(LOOPBACK, metrics_port)
    problem = _reserved(metrics_port) or (error.strerror if error else None)
    if metrics_port == service_port:
        problem = "it is the port of the service"
    if problem:
        other = next_port(max(metrics_port, service_port))
        raise _unusable("METRICS_PORT", metrics_port, f" ({problem})", other)


def _reserved(port: int) -> str | None:
    """Return which part of Ray takes a port before the service can listen on it."""
    part = _RAY_PORTS.get(port)
    return f"Ray's {part} takes it" if part else None


def _unusable(variable: str, port: int, why: str, other: int) -> SettingsError:
    return SettingsError(
        f"can't be used{why}",
        variable,
        subject=f"{variable}={port}",
        remedy=f"Choose another: {variable}={other} aura up",
    )


def next_port(port: int) -> int:
    """Return a port to try instead, which needs no privileges."""
    return port + 1 if _FIRST_UNPRIVILEGED <= port < _LAST_PORT else _USUAL_PORT


def addresses_of(settings: Settings, http: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the URLs of the service: its public address, this machine's, those for others."""
    host, port = host_of(settings, http), port_of(settings, http)
    own = [settings.image_service_base_url] if settings.image_service_base_url else []
    reachable = reachable_addresses(host)
    local = [] if host in reachable else ["localhost"]
    return (*own, *(f"http://{netloc(name, port)}" for name in (*local, *reachable)))
