"""Every knob once, frozen: environment over .env.local over .env over a config's own defaults.

Read once, in the builder or the command line, and passed on by value. Knows no Ray and no torch.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from serve_app.core.errors import SettingsError
from serve_app.core.service.rate_limit import RateLimit

ENV_FILES = (".env", ".env.local")  # the later one wins
IGNORED = frozenset({"GEMINI_API_KEY", "API_KEY"})  # the frontend's own, in the same file
_PORTS = {"http": 80, "https": 443}  # which browsers leave out
_NEAR = 0.86  # likeness from which a name is taken for a slip of ours
_DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _device(name: str) -> str:
    if not _DEVICES.fullmatch(name):
        raise ValueError("must be auto, cuda, cuda:N, mps or cpu")
    return name


def _listed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(part for part in (p.strip() for p in value.split(",")) if part)


def _origin(text: str) -> str:
    """Scheme, name and port of an address, as browsers send them. Raises `ValueError`."""
    if text == "*":
        raise ValueError("must name the origins that may call: with * every page could")
    problem = ValueError("must be addresses like https://app.example.org")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        name = host and (f"[{host}]" if ":" in host else host.encode("idna").decode())
    except ValueError:
        raise problem from None
    if parts.scheme not in _PORTS or not name or "@" in parts.netloc:
        raise problem
    told = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{name}{told}"


def _origins(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(_origin, texts))


def _address(text: str) -> str:
    _origin(text)
    return text.rstrip("/")


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


Folder = Annotated[Path, AfterValidator(_absolute)]
Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """All settings of the service. The upper-case name of a field is its variable."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, env_file_encoding="utf-8"
    )

    model_checkpoint_dir: Folder | None = None
    model_refiner_checkpoint_dir: Folder | None = None
    model_config_dir: Folder | None = None
    models_file: Folder | None = None
    models_in_memory: int = Field(1, ge=1, le=64)
    loras_in_memory: int = Field(8, ge=1, le=64)
    model_device: Annotated[str, AfterValidator(_device)] = "auto"
    model_precision: Literal["fp32", "fp16", "bf16"] | None = None
    enable_xformers: bool = False
    model_max_batch_size: int | None = Field(None, ge=1, le=64)
    total_gpus: int | None = Field(None, ge=1)
    model_determinism: Literal["strict", "fast"] = "strict"
    model_cpu_threads: int | None = Field(None, ge=1, le=256)
    snapshot_every: int = Field(5, ge=1, le=150)
    image_count: int = Field(2, ge=1, le=8)
    backend_port: int = Field(4000, ge=1, le=65535)
    metrics_port: int | None = Field(None, ge=1, le=65535)
    image_service_base_url: Annotated[str, AfterValidator(_address)] | None = None
    allowed_origins: Annotated[Listed, AfterValidator(_origins)] = ()
    vite_port: int = Field(5173, ge=1, le=65535)
    allowed_hosts: Listed = ()
    api_keys: Listed = Field((), repr=False)
    allow_anonymous: bool = False
    max_body_mb: int = Field(32, ge=1, le=1024)
    prompt_max_chars: int = Field(500, ge=1, le=8000)
    rate_limit: float = Field(0, ge=0)
    rate_burst: float | None = Field(None, gt=0)
    safety_words_file: Folder | None = None
    safety_checker_dir: Folder | None = None
    require_terms_acceptance: bool = False
    ledger_file: Folder | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """A config's own defaults come last: what the operator exports or writes down wins."""
        return env_settings, dotenv_settings, init_settings

    @classmethod
    def read(cls, defaults: Mapping[str, str] | None = None, folder: Path = Path()) -> "Settings":
        """The settings in force here: `folder` is where the .env files are.

        Raises `SettingsError` with one line that names the variable and what it may be.
        """
        files = [folder / name for name in ENV_FILES]
        defaults = dict(defaults or {})
        check_given(defaults)
        named = set(os.environ)
        for file in files:
            named |= set(dotenv_values(file)) if file.is_file() else set()
        _refuse_near_misses(named)
        lowered = {name.lower(): value for name, value in defaults.items() if value}
        try:
            return cls(_env_file=files, **lowered)  # type: ignore[arg-type]  # from text
        except ValidationError as error:
            raise _illegal(str(error.errors()[0]["loc"][0]).upper(), error) from None

    @property
    def origins(self) -> tuple[str, ...]:
        """The browser origins that may call: the list, our own address, local development."""
        own = (_origin(self.image_service_base_url),) if self.image_service_base_url else ()
        ports = (self.vite_port, 3000, 8080, 8082)
        local = tuple(f"http://{h}:{p}" for p in ports for h in ("localhost", "127.0.0.1"))
        return tuple(dict.fromkeys((*self.allowed_origins, *own, *local)))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names this service goes by, besides the local ones: the list, our own address."""
        own = urlsplit(self.image_service_base_url or "").hostname
        if own is None:
            return self.allowed_hosts
        return (*self.allowed_hosts, f"[{own}]" if ":" in own else own)

    @property
    def is_public(self) -> bool:
        """Whether others than this machine may ask: with a key, or because the operator says so."""
        return bool(self.api_keys) or self.allow_anonymous

    @property
    def rate_limit_policy(self) -> RateLimit | None:
        """What each caller may use, in megapixel-steps; None without a limit."""
        if not self.rate_limit:
            return None
        return RateLimit(self.rate_limit / 60, self.rate_burst or self.rate_limit)

    def words(self) -> tuple[str, ...]:
        """The words of SAFETY_WORDS_FILE, one a line; # begins a comment.

        Raises `SettingsError`.
        """
        if self.safety_words_file is None:
            return ()
        try:
            lines = self.safety_words_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"SAFETY_WORDS_FILE={self.safety_words_file} can't be read: {error}",
                "SAFETY_WORDS_FILE",
            ) from None
        words = tuple(w for w in (line.partition("#")[0].strip() for line in lines) if w)
        if not words:
            raise SettingsError(
                f"SAFETY_WORDS_FILE={self.safety_words_file} has no words in it: one a line. "
                "Empty the setting to have no filter",
                "SAFETY_WORDS_FILE",
            )
        return words

    @property
    def ledger(self) -> Path:
        """The file of the ledger."""
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return self.ledger_file or home / "aura-serve" / f"ledger-{self.backend_port}.sqlite"


def check_given(given: Mapping[str, str]) -> None:
    """Returns where each is a setting with a legal value, as those of a config must be: nobody else
    reads them there.

    Raises `SettingsError` with what it may be.
    """
    ours = {field.upper(): about for field, about in Settings.model_fields.items()}
    for name, value in given.items():
        about = ours.get(name.upper())
        if about is None:
            near = difflib.get_close_matches(name.upper(), ours, n=1)
            told = f"; did you mean {near[0]}?" if near else ": see .env.example"
            raise SettingsError(f"{name} is no setting of this service{told}", name, *near)
        kind: Any = Annotated[about.annotation, name, *about.metadata]  # metadata may be none
        try:
            if value:
                TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise _illegal(name, error) from None


def _illegal(name: str, error: ValidationError) -> SettingsError:
    first = error.errors()[0]
    said = first["msg"].removeprefix("Value error, ")
    return SettingsError(f"{name}={first['input']}: {said}", name)


def _refuse_near_misses(named: set[str]) -> None:
    ours = {field.upper() for field in Settings.model_fields}
    for name in sorted(named - ours - IGNORED):
        near = difflib.get_close_matches(name.upper(), ours, n=1, cutoff=_NEAR)
        if near:
            raise SettingsError(
                f"{name} is no setting of this service; did you mean {near[0]}?", name, near[0]
            )
