"""The types of settings that pydantic lacks: devices, addresses, origins, lists, absolute paths."""

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from serve_app.config.network import LOOPBACK, parsed_address

_DEFAULT_PORTS = {"http": 80, "https": 443}  # which browsers leave out
_SCHEMAS = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _check_device(name: str) -> str:
    if not _DEVICES.fullmatch(name):
        raise ValueError("must be auto, cuda, cuda:N, mps or cpu")
    return name


def _listen_address(text: str) -> str:
    """Return an address to listen on. A name is refused: other programs set HOST to one."""
    address = parsed_address(LOOPBACK if text.lower() == "localhost" else text)
    if address is None:
        raise ValueError(
            "must be an address, such as 127.0.0.1, 0.0.0.0 or :: (AURA_HOST wins over the HOST "
            "of another program)"
        )
    return str(address)


def _split_list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(part for part in (p.strip() for p in value.split(",")) if part)


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


def _host_names(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(host_name, texts))


def _origins(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(origin, texts))


def _address(text: str) -> str:
    origin(text)
    return text.rstrip("/")


def _postgres_url(text: str) -> str:
    """Return the URL of a PostgreSQL database. Raises `ValueError`, which does not repeat it."""
    problem = ValueError("must be an address such as postgresql://user:password@host:5432/database")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises for what is no number
    except ValueError:
        raise problem from None
    if parts.scheme not in ("postgresql", "postgres") or not text.startswith(f"{parts.scheme}://"):
        raise problem
    return text


def _schema_name(text: str) -> str:
    if not _SCHEMAS.fullmatch(text):
        raise ValueError("must be a plain name: small letters, digits and _")
    return text


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


SchemaName = Annotated[str, AfterValidator(_schema_name)]
PostgresUrl = Annotated[str, AfterValidator(_postgres_url)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
TextList = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
Weights = Annotated[
    tuple[Annotated[float, Field(ge=0.01, le=100)], ...], BeforeValidator(_split_list)
]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
DeviceName = Annotated[str, AfterValidator(_check_device)]
Origins = Annotated[TextList, AfterValidator(_origins)]
HostNames = Annotated[TextList, AfterValidator(_host_names)]
BaseUrl = Annotated[str, AfterValidator(_address)]
