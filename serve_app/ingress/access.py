"""Who may ask: keys, hosts and origins, as plain decisions on a request's headers.

Knows no routes but the open ones, and sends nothing: `middleware.py` acts on what is decided here.
Keys are kept and compared as digests, in constant time; a key's name in logs and books is a part
of its digest.
"""

import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from starlette.datastructures import Headers

from serve_app.core.errors import ForbiddenHost, ForbiddenOrigin, Unauthorized

PUBLIC_ROUTES = frozenset({("GET", "/livez"), ("GET", "/health"), ("GET", "/licenses")})
PROBE_ROUTES = frozenset({"/livez", "/health"})  # asked by address, so exempt from the host list
_PROXIED = ("forwarded", "via", "x-real-ip", "cf-connecting-ip", "true-client-ip")
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
BODY_LIMIT = 32 * 2**20  # bytes


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Who may ask for what, as the settings have it."""

    keys: frozenset[str] = frozenset()  # digests
    anonymous: bool = False  # without keys: whether others than this machine may ask
    hosts: tuple[str, ...] = ()  # besides the local ones; "*.example.org" and "*" are understood
    origins: tuple[str, ...] = ()
    max_body_bytes: int = BODY_LIMIT  # bytes
    body_read_timeout: float = 60.0  # seconds that the next piece of a body may take

    def check_host(self, path: str, host: str) -> None:
        """Returns when the Host header names us; raises `ForbiddenHost` if it does not.

        A page whose own name was rebound to this address has that name in the header.
        """
        if path not in PROBE_ROUTES and not self._is_ours(host):
            raise ForbiddenHost(
                "this service does not go by the name in the Host header; its operator can add it "
                "to ALLOWED_HOSTS"
            )

    def check_origin(self, origin: str | None, host: str) -> None:
        """Returns when no browser page asks, or one that may; raises `ForbiddenOrigin` if not."""
        if origin is None or origin in self.origins:
            return
        if self._is_ours(host) and origin in (f"http://{host}", f"https://{host}"):
            return  # a page of ours
        raise ForbiddenOrigin(
            "pages of this origin may not ask; the service's operator can add it to ALLOWED_ORIGINS"
        )

    def caller(self, method: str, path: str, headers: Headers, peer: str | None) -> str:
        """The name of who asks: of a key, or of an address. Raises `Unauthorized`.

        Without keys only this machine may ask; what a proxy passes on comes from elsewhere.
        """
        if self.keys:
            name = self._key_name(headers.get("authorization", ""))
            if name is None and (method, path) not in PUBLIC_ROUTES:
                raise Unauthorized("send a key of this service: Authorization: Bearer <key>")
            return name or address_name(peer)
        local = _is_loopback(peer) and not any(map(_tells_of_a_proxy, headers))
        if not (local or self.anonymous or (method, path) in PUBLIC_ROUTES):
            raise Unauthorized(
                "no key is configured, so only the service's own machine may ask; its operator can "
                "set API_KEYS, or ALLOW_ANONYMOUS=1 to let everybody in"
            )
        return address_name(peer)

    def _is_ours(self, host: str) -> bool:
        name = _without_port(host).lower()
        return any(_matches(name, known) for known in (*LOCAL_HOSTS, *self.hosts))

    def _key_name(self, authorization: str) -> str | None:
        scheme, _, key = authorization.partition(" ")
        digest, found = key_digest(key.strip().encode("latin-1")), False  # as headers are read
        for known in self.keys:  # all of them, so that time tells nothing
            found |= hmac.compare_digest(digest, known)
        return f"key:{digest[:12]}" if found and scheme.lower() == "bearer" else None


def key_digest(key: bytes) -> str:
    """What is kept of a key."""
    return sha256(key).hexdigest()


def digests(keys: Iterable[str]) -> frozenset[str]:
    """What is kept of several keys."""
    return frozenset(key_digest(key.encode()) for key in keys)


def address_name(peer: str | None) -> str:
    """The name of a caller without a key; one for the whole network of an IPv6 address."""
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return "address:unknown"
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if isinstance(address, ipaddress.IPv6Address):
        return f"address:{ipaddress.ip_network((address, 64), strict=False).network_address}"
    return f"address:{address}"


def _tells_of_a_proxy(header: str) -> bool:
    return header in _PROXIED or header.startswith("x-forwarded-")


def _is_loopback(peer: str | None) -> bool:
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]


def _matches(name: str, known: str) -> bool:
    known = known.lower()
    if known.startswith("*."):
        return name.endswith(known[1:])
    return known in ("*", name)
