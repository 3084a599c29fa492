"""Try IMAGE_SERVICE_BASE_URL: whether its name resolves, something answers, and it is the service.

`probe` contacts the address that the operator set, and nothing else, for three seconds at most.
"""

import json
import queue
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from serve_app.config.listening import addresses_of, host_of, port_of
from serve_app.config.network import (
    is_loopback,
    machine_addresses,
    netloc,
    reachable_addresses,
)
from serve_app.config.settings import Settings
from serve_app.doctor.finding import Finding, fine, skip, warn

_TIMEOUT = 3.0  # seconds for everything: resolving, connecting and answering
_CONNECT_TIMEOUT = 2.0  # seconds for each address and for the answer
_MAX_BODY = 1 << 12  # bytes read of a response
_DEFAULT_PORTS = {"http": 80, "https": 443}
_ALIVE = {"status": "alive"}  # what GET /livez answers


@dataclass(frozen=True, slots=True)
class UrlResponse:
    """What came back from the /livez of a URL."""

    addresses: tuple[str, ...] = ()  # to which its name resolves
    status: int | None = None  # None without an HTTP response
    is_service: bool = False  # whether an Aura Serve answered
    location: str = ""  # where a redirect leads
    problem: str = ""  # why there is no HTTP response


def probe(url: str, timeout: float = _TIMEOUT) -> UrlResponse:
    """Ask the /livez of a URL; a name that takes long to resolve is left behind in a thread."""
    results: queue.SimpleQueue[UrlResponse] = queue.SimpleQueue()
    threading.Thread(target=lambda: results.put(_ask(urlsplit(url))), daemon=True).start()
    try:
        return results.get(timeout=timeout)
    except queue.Empty:
        return UrlResponse(problem=f"there is no answer within {timeout:g} s")


def check_host(settings: Settings, http: Mapping[str, Any]) -> Finding:
    """Report who finds the service at the address on which it listens."""
    host, port = host_of(settings, http), port_of(settings, http)
    if is_loopback(host):
        return fine("host", f"{host}: this machine alone; HOST=0.0.0.0 lets others in")
    reachable = [f"http://{netloc(address, port)}" for address in reachable_addresses(host)]
    if not reachable:
        return skip("host", f"{host}, but this machine has no address besides loopback now")
    return fine(
        "host",
        f"{host}: other machines find the service at {' or '.join(reachable)}, unless a firewall "
        f"is in between, which can't be seen from here: open {reachable[0]}/livez on one of them",
    )


def check_address(
    settings: Settings,
    http: Mapping[str, Any],
    response: UrlResponse | None,
    *,
    is_running: bool,
) -> Finding:
    """Check that IMAGE_SERVICE_BASE_URL leads to the service.

    `response` is what the URL answers, None without a URL. `is_running` says that the service
    answers where it listens.
    """
    url = settings.image_service_base_url
    if url is None or response is None:
        return fine("address", addresses_of(settings, http)[0])
    subject = f"IMAGE_SERVICE_BASE_URL={url}"
    if response.is_service and is_running:
        return fine("address", f"{url} answers, and it is an Aura Serve")
    if response.is_service:
        port = netloc(host_of(settings, http), port_of(settings, http))
        problem = f"leads to another Aura Serve: nothing on this machine answers on {port}"
        return warn(
            "address", f"{subject} {problem}", f"IMAGE_SERVICE_BASE_URL={_own(settings, http)}"
        )
    if response.location:
        problem = f"redirects to {response.location}: clients lose their request's body on the way"
        target = response.location.removesuffix("/livez")
        return warn("address", f"{subject} {problem}", f"IMAGE_SERVICE_BASE_URL={target}")
    if conflict := _conflict(urlsplit(url), response, settings, http):
        return warn("address", f"{subject}, but {conflict[0]}", conflict[1])
    found = response.problem or f"it answers with status {response.status} to GET /livez"
    if response.status is not None and not is_running:
        return skip(
            "address",
            f"{url}: {found}; whether it leads to the service can be seen while that runs",
        )
    if _is_ours(response) and not is_running:
        return fine("address", f"{url}, which is this machine's; the service is not running now")
    running = " though the service runs" if is_running else ""
    return warn("address", f"{subject} can't be reached{running}: {found}", f"curl -v {url}/livez")


def _conflict(
    url: SplitResult, response: UrlResponse, settings: Settings, http: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Return why a URL of this machine can't lead to the service, and the setting that mends it."""
    if not _is_ours(response) or response.status is not None:
        return None
    host, port = host_of(settings, http), port_of(settings, http)
    if _port_of(url) != port:
        return (
            f"the service listens on port {port}: a frontend that uses this URL gets no answer",
            f"IMAGE_SERVICE_BASE_URL={_own(settings, http)}",
        )
    if url.scheme == "https" and not http.get("ssl_certfile"):
        return (
            "the service speaks plain HTTP on this port; TLS needs a proxy in front",
            f"IMAGE_SERVICE_BASE_URL=http{url.geturl().removeprefix('https')}",
        )
    if not any(_covers(host, address) for address in response.addresses):
        is_local = all(map(is_loopback, response.addresses))
        fix = f"IMAGE_SERVICE_BASE_URL={_own(settings, http)}" if is_local else "HOST=0.0.0.0"
        return f"the service listens on {host} only", fix
    return None


def _is_ours(response: UrlResponse) -> bool:
    """Return whether a URL's name resolves to an address of this machine."""
    ours = machine_addresses()
    return any(is_loopback(address) or address in ours for address in response.addresses)


def _covers(host: str, address: str) -> bool:
    """Return whether a server that listens on `host` is found at an address of this machine."""
    if host == "0.0.0.0":
        return ip_address(address).version == 4
    return host in ("::", address) or (host == "localhost" and is_loopback(address))


def _own(settings: Settings, http: Mapping[str, Any]) -> str:
    """Return a URL that leads to the service without a proxy."""
    others = addresses_of(settings.model_copy(update={"image_service_base_url": None}), http)
    return others[0]


def _port_of(url: SplitResult) -> int:
    return url.port or _DEFAULT_PORTS[url.scheme]


def _ask(url: SplitResult) -> UrlResponse:
    host, port = url.hostname or "", _port_of(url)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return UrlResponse(problem=f"its name does not resolve ({reason})")
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    secure = url.scheme == "https"
    kind = HTTPSConnection if secure else HTTPConnection
    connection = kind(host, port, timeout=_CONNECT_TIMEOUT)
    try:
        connection.request("GET", f"{url.path}/livez")
        response = connection.getresponse()
        body = response.read(_MAX_BODY)
    except ssl.SSLCertVerificationError as error:
        return UrlResponse(addresses, problem=f"its certificate is refused: {error.verify_message}")
    except (OSError, HTTPException) as error:
        return UrlResponse(addresses, problem=_reason(error, netloc(host, port)))
    finally:
        connection.close()
    is_service = False
    with suppress(ValueError):
        is_service = response.status == 200 and json.loads(body) == _ALIVE
    location = response.headers.get("location", "") if 300 <= response.status < 400 else ""
    return UrlResponse(addresses, response.status, is_service, location)


def _reason(error: Exception, address: str) -> str:
    if isinstance(error, TimeoutError):
        return f"{address} does not answer within {_CONNECT_TIMEOUT:g} s"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{address}: {text or type(error).__name__}"
