"""The types of settings that pydantic lacks: devices, addresses, origins, lists, absolute paths."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from serve_app.config.network import LOOPBACK, parsed_address
from serve_app.config.web_addresses import host_name, origin

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


CompileMode = Annotated[
    Literal["off", "regions", "full"],
    Field(
        description="torch.compile for images of the aspect ratios' sizes with prompts of up to 75 "
        "tokens and without LoRAs; all others run eager. regions: the transformer blocks, compiled "
        "in a tenth of the time. full: the whole UNet"
    ),
]
Determinism = Annotated[
    Literal["strict", "fast"],
    Field(
        description="strict: the same bytes whatever shares the batch. fast: neither checks nor "
        "padding, so the last bits may differ"
    ),
]
XFormers = Annotated[
    bool, Field(description="1: xFormers attention where it runs. 0: the attention of PyTorch")
]
Quantization = Annotated[
    Literal["off", "int8", "fp8"],
    Field(
        description="8-bit weights and inputs of the UNet's attention and feed-forward layers: "
        "half their memory or less, slightly other images. int8 is faster on CPUs that have "
        "instructions for it; fp8 is for GPUs of compute capability 8.9 or more"
    ),
]
SchemaName = Annotated[
    str,
    AfterValidator(_schema_name),
    Field(description="Schema of that database; each service needs one of its own"),
]
PostgresUrl = Annotated[str, AfterValidator(_postgres_url)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
TextList = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
Weights = Annotated[
    tuple[Annotated[float, Field(ge=0.01, le=100)], ...], BeforeValidator(_split_list)
]
DailyQuotas = Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(_split_list)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
DeviceName = Annotated[str, AfterValidator(_check_device)]
Origins = Annotated[TextList, AfterValidator(_origins)]
HostNames = Annotated[TextList, AfterValidator(_host_names)]
BaseUrl = Annotated[str, AfterValidator(_address)]
