"""The types of settings that pydantic lacks: devices, addresses, origins, lists, absolute paths."""

import re
from base64 import b64decode
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from serve_app.config.network import LOOPBACK, parsed_address
from serve_app.config.web_addresses import host_name, origin, secure_url
from serve_app.core.service.webhooks import WebhookReceiver

_SCHEMAS = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_SECRET_PREFIX = "whsec_"  # of Standard Webhooks
_SECRET_BYTES = (24, 64)
_SENDABLE = re.compile(r"[!\"$-~]+")  # no space, control character or fragment
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


def _has_mcp_sdk(wanted: bool) -> bool:
    if wanted:
        with suppress(ModuleNotFoundError):
            if find_spec("mcp") is not None:
                return True
        raise ValueError("needs the MCP SDK, which is not installed: pip install 'aura-serve[mcp]'")
    return False


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


def _webhook_receivers(texts: tuple[str, ...]) -> tuple[WebhookReceiver, ...]:
    """Return the receivers of ADDRESS=SECRET texts. Raises `ValueError`, which repeats none."""
    secrets: dict[str, list[bytes]] = {}
    for text in texts:
        url, mark, secret = text.rpartition(f"={_SECRET_PREFIX}")
        if not mark:
            raise ValueError(
                "must be addresses, each with its secret: https://example.org/hook=whsec_..."
            )
        secrets.setdefault(_webhook_url(url), []).append(_webhook_secret(secret))
    return tuple(WebhookReceiver(url, tuple(keys)) for url, keys in secrets.items())


def _webhook_url(url: str) -> str:
    parts = secure_url(url)
    if parts is None or not _SENDABLE.fullmatch(url) or "*" in parts.netloc:
        raise ValueError("must have https addresses, or http ones of this machine, without a user")
    return url


def _webhook_secret(text: str) -> bytes:
    try:
        secret = b64decode(text, validate=True)
    except ValueError:
        secret = b""
    if not _SECRET_BYTES[0] <= len(secret) <= _SECRET_BYTES[1]:
        raise ValueError("must have secrets of 24 to 64 bytes: whsec_ and their base64")
    return secret


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
A1111Api = Annotated[
    bool, Field(description="0: no /sdapi, the API of AUTOMATIC1111's web UI, behind the same keys")
]
McpApi = Annotated[
    bool,
    AfterValidator(_has_mcp_sdk),
    Field(
        description="1: /mcp, the Model Context Protocol, by which assistants draw, behind the "
        "same keys. Needs `pip install 'aura-serve[mcp]'`"
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
WebhookReceivers = Annotated[
    tuple[WebhookReceiver, ...],
    BeforeValidator(_webhook_receivers),
    BeforeValidator(_split_list),  # which comes first
    Field(
        repr=False,
        description="Addresses that a request may name as its `webhook`, each with the secret that "
        "its messages are signed with: https://example.org/hook=whsec_...; comma separated. Empty: "
        "no webhooks",
    ),
]
PostgresUrl = Annotated[
    Annotated[str, AfterValidator(_postgres_url)] | None,
    Field(
        repr=False,
        description="PostgreSQL database in place of LEDGER_FILE: postgresql://USER:PASSWORD@HOST/"
        "DATABASE?sslmode=require. Needs `pip install 'aura-serve[postgres]'`. Empty: LEDGER_FILE",
    ),
]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
ConfigFolder = Annotated[
    AbsolutePath | None,
    Field(
        description="Diffusers folder of an SDXL base, for the configs and tokenizers that single "
        "files lack. Empty: MODEL_CHECKPOINT_DIR, if that is a folder"
    ),
]
TextList = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
Weights = Annotated[
    tuple[Annotated[float, Field(ge=0.01, le=100)], ...],
    BeforeValidator(_split_list),
    Field(
        description="Shares of GPU time while several callers have work: one number from 0.01 to "
        "100 for each key, in the order of API_KEYS. Empty: all are equal"
    ),
]
DailyQuotas = Annotated[
    tuple[Annotated[float, Field(ge=0)], ...],
    BeforeValidator(_split_list),
    Field(
        description="Megapixel-steps of each key on a day of UTC, in the order of API_KEYS; 0: any"
    ),
]
ListenAddress = Annotated[
    str,
    AfterValidator(_listen_address),
    Field(
        description="Address to listen on: 127.0.0.1 is for this machine alone; 0.0.0.0, or :: "
        "with IPv6, lets others in, who then need a key"
    ),
]
OnDamage = Annotated[
    Literal["stop", "replace"],
    Field(
        description="stop: a damaged LEDGER_FILE is left as it is; the service does not start, or "
        "goes on without a ledger. replace: it is renamed and begun anew"
    ),
]
PromptLimit = Annotated[
    int,
    Field(
        ge=1,
        le=8000,
        description="Longest prompt on /generate and /refine, in characters; the OpenAI routes "
        "take 4000",
    ),
]
DeviceName = Annotated[str, AfterValidator(_check_device)]
Origins = Annotated[TextList, AfterValidator(_origins)]
HostNames = Annotated[
    TextList,
    AfterValidator(_host_names),
    Field(
        description="Host names of the service, besides localhost; comma separated. "
        "`*.example.org` and `*` are understood"
    ),
]
BaseUrl = Annotated[str, AfterValidator(_address)]
