"""Web addresses as browsers send them: origins, and host names."""

from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from serve_app.config.network import is_loopback

_DEFAULT_PORTS = {"http": 80, "https": 443}  # which browsers leave out
_LOCAL_PORTS = (3000, 8080, 8082)  # of local development, besides Vite's


def browser_origins(listed: Iterable[str], own: str | None, vite_port: int) -> tuple[str, ...]:
    """Return the origins that may call: those listed, our own address, local development."""
    ports = (vite_port, *_LOCAL_PORTS)
    local = (f"http://{host}:{port}" for port in ports for host in ("localhost", "127.0.0.1"))
    return tuple(dict.fromkeys((*listed, *([origin(own)] if own else []), *local)))


def host_names(listed: Iterable[str], own: str | None, machine: Iterable[str]) -> tuple[str, ...]:
    """Return the host names of a service: those listed, our own address, and its machine's.

    The machine's are for a service that others may call: a page that was rebound to one of them
    still has no key.
    """
    return (*listed, *([host_name(own)] if own else []), *machine)


def origin(text: str) -> str:
    """Return scheme, host and port of an address as browsers send them. Raises `ValueError`."""
    if text == "*":
        raise ValueError("must name the origins that may call: * would let every web page in")
    problem = ValueError("must be addresses such as https://app.example.org")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        name = host and (f"[{host}]" if ":" in host else host.encode("idna").decode())
    except ValueError:
        raise problem from None
    if parts.scheme not in _DEFAULT_PORTS or not name or "@" in parts.netloc:
        raise problem
    suffix = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{name}{suffix}"


def secure_url(text: str) -> SplitResult | None:
    """Return the parts of an address that secrets may be sent to, without a user; None for others.

    That is an https address, or an http one of this machine.
    """
    try:
        origin(text)
    except ValueError:
        return None
    parts = urlsplit(text)
    return parts if parts.scheme == "https" or is_loopback(parts.hostname or "") else None


def host_name(text: str) -> str:
    """Return a host name as the Host header has it, of a name or an address with a port.

    `*` and `*.example.org` stay patterns. Raises `ValueError`.
    """
    problem = ValueError("must be host names such as pictures.example.org, *.example.org or *")
    wildcard = "*." if text.startswith("*.") else ""
    if text == "*":
        return text
    try:
        url = text if "://" in text else f"http://{text.removeprefix(wildcard)}"
        name = urlsplit(origin(url)).hostname
    except ValueError:
        raise problem from None
    if not name or "*" in name:
        raise problem
    return f"[{name}]" if ":" in name else wildcard + name
