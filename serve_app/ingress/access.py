"""Who may use the service: keys, hosts and origins, as plain decisions on a request's headers.

Sends nothing: `middleware.py` acts on what is decided here. Keys are kept and compared as digests,
in constant time. A key's name in logs and in the ledger is a part of its digest.
"""

import hmac
import ipaddress
from base64 import b64decode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from starlette.datastructures import Headers

from serve_app.ingress.http_errors import ForbiddenHost, ForbiddenOrigin, Unauthorized

PUBLIC_PATHS = frozenset({"/", "/docs", "/openapi.json", "/livez", "/health", "/licenses"})
PUBLIC_FOLDERS = ("/static/", "/images/")  # links are signed
BASIC_FOLDERS = ("/sdapi/",)  # whose clients send a key as a password; a browser never asks for it
PROBE_ROUTES = frozenset({"/livez", "/health"})  # probes call by address, whatever the host list
LOCAL_HOST = "localhost"
BODY_LIMIT = 32 * 2**20  # bytes
OPEN_BODIES_LIMIT = 512 * 2**20  # bytes
_ADDRESS = "address:"  # begins the name of a caller without a key
_PROXY_HEADERS = ("forwarded", "via", "x-real-ip", "cf-connecting-ip", "true-client-ip")


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Who may use the service, as the settings say."""

    keys: frozenset[str] = frozenset()  # digests
    anonymous: bool = False  # without keys: whether other machines may use the service
    hosts: tuple[str, ...] = ()  # names besides localhost; "*.example.org" and "*" are understood
    origins: tuple[str, ...] = ()
    max_body_bytes: int = BODY_LIMIT
    max_open_body_bytes: int = OPEN_BODIES_LIMIT  # of bodies being read, and of decoded images
    body_read_timeout: float = 60.0  # seconds until the next piece of a body must arrive

    def check_host(self, path: str, host: str) -> None:
        """Return if the Host header is one of ours; raise `ForbiddenHost` if not.

        A page whose own name was rebound to this address has that name in the header. An address
        in the header is always ours: no attacker can make a browser send one to another address.
        """
        if path not in PROBE_ROUTES and not self._is_our_host(host):
            raise ForbiddenHost(
                "the host name in the Host header is not allowed",
                remedy="The service's operator can add it to ALLOWED_HOSTS",
            )

    def check_origin(self, origin: str | None, host: str) -> None:
        """Return if no browser page sent the request, or an allowed page did.

        Raises `ForbiddenOrigin`.
        """
        if origin is None or origin in self.origins:
            return
        if self._is_our_host(host) and origin in (f"http://{host}", f"https://{host}"):
            return  # a page of this service
        raise ForbiddenOrigin(
            "pages of this origin are not allowed to call the service",
            remedy="The service's operator can add the origin to ALLOWED_ORIGINS",
        )

    def caller(self, method: str, path: str, headers: Headers, peer: str | None) -> str:
        """Return the name of the caller: of a key, or of an address. Raises `Unauthorized`.

        Without keys only this machine may call, and what a proxy forwards comes from elsewhere.
        """
        public = is_public(method, path)
        if self.keys:
            name = self._authorized_name(path, headers.get("authorization", ""))
            if name is None and not public:
                scheme = "Bearer <key>"
                if path.startswith(BASIC_FOLDERS):
                    scheme += ", or the key as the password of Basic"
                raise Unauthorized(
                    "the API key is missing or wrong",
                    remedy=f"Send a key of this service: Authorization: {scheme}",
                )
            return name or address_name(peer)
        is_local = _is_loopback(peer) and not any(map(_is_proxy_header, headers))
        if not (is_local or self.anonymous or public):
            raise Unauthorized(
                "no API key is configured, so only the service's own machine may call it",
                remedy="The service's operator can set API_KEYS, or ALLOW_ANONYMOUS=1",
            )
        return address_name(peer)

    def _is_our_host(self, host: str) -> bool:
        name = _without_port(host).lower().removesuffix(".")
        if _is_address(name):
            return True
        return any(_matches(name, pattern) for pattern in (LOCAL_HOST, *self.hosts))

    def _authorized_name(self, path: str, authorization: str) -> str | None:
        scheme, _, credentials = authorization.partition(" ")
        key, scheme = credentials.strip().encode("latin-1"), scheme.lower()  # as headers are read
        if scheme == "basic" and path.startswith(BASIC_FOLDERS):
            key, scheme = _password(key), "bearer"
        digest, matches = key_digest(key), False
        for known in self.keys:  # compare with all of them, so that the time reveals nothing
            matches |= hmac.compare_digest(digest, known)
        return _key_name(digest) if matches and scheme == "bearer" else None


def _password(credentials: bytes) -> bytes:
    """Return the password of HTTP's Basic scheme (RFC 7617), or all of a text without a colon."""
    try:
        user, colon, password = b64decode(credentials, validate=True).partition(b":")
    except ValueError:
        return b""
    return password if colon else user


def is_public(method: str, path: str) -> bool:
    """Return whether a request needs no key: a page, its files, a probe, the licences, a link."""
    is_open = path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS)
    return is_open and method in ("GET", "HEAD")


def key_digest(key: bytes) -> str:
    """Return what is kept of a key."""
    return sha256(key).hexdigest()


def digests(keys: Iterable[str]) -> frozenset[str]:
    """Return what is kept of several keys."""
    return frozenset(key_digest(key.encode()) for key in keys)


def by_caller(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return numbers of keys as those of the callers with these keys, by the callers' names."""
    return {_key_name(key_digest(key.encode())): number for key, number in numbers.items()}


def address_name(peer: str | None) -> str:
    """Return the name of a caller without a key; an IPv6 network of 64 bits has one name."""
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return f"{_ADDRESS}unknown"
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if isinstance(address, ipaddress.IPv6Address):
        return f"{_ADDRESS}{ipaddress.ip_network((address, 64), strict=False).network_address}"
    return f"{_ADDRESS}{address}"


def is_address(name: str) -> bool:
    """Return whether a caller's name is that of an address."""
    return name.startswith(_ADDRESS)


def _key_name(digest: str) -> str:
    return f"key:{digest[:12]}"


def _is_proxy_header(header: str) -> bool:
    return header in _PROXY_HEADERS or header.startswith("x-forwarded-")


def _is_loopback(peer: str | None) -> bool:
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _is_address(name: str) -> bool:
    """Return whether a host is an IP address as browsers write it: IPv6 in brackets."""
    if name.startswith("["):
        name = name[1:-1]
    elif ":" in name:
        return False
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.lower()
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    return pattern in ("*", name)
