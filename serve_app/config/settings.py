"""`Settings`: every environment variable of the service, parsed, validated and frozen.

Read once, in the builder or the command line, and passed on by value. No Ray, no torch.

`setting_sources.py` says where they are read and what wins. Each variable may also be written with
the prefix AURA_, for machines where another program reads the bare name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.config.cloud_settings import (
    GeminiBaseUrl,
    GeminiImageSize,
    GeminiKey,
    GeminiMaxCalls,
    GeminiModel,
    GeminiTimeout,
)
from serve_app.config.folders import default_ledger_file
from serve_app.config.network import LOOPBACK, machine_names
from serve_app.config.safety_words import read_words
from serve_app.config.setting_names import Given, SettingNames
from serve_app.config.setting_sources import read_sources
from serve_app.config.setting_types import (
    A1111Api,
    AbsolutePath,
    BaseUrl,
    CompileMode,
    ConfigFolder,
    DailyQuotas,
    Determinism,
    DeviceName,
    HostNames,
    ListenAddress,
    McpApi,
    OnDamage,
    Origins,
    PostgresUrl,
    PromptLimit,
    Quantization,
    SchemaName,
    TextList,
    WebhookReceivers,
    Weights,
    XFormers,
)
from serve_app.config.web_addresses import browser_origins, host_names
from serve_app.core.errors import SettingsError
from serve_app.core.service.ledger_place import LedgerDatabase, LedgerFile, LedgerPlace
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.validation_message import validation_message


class Settings(BaseModel):
    """All settings of the service. The upper-case name of a field is its variable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gemini_api_key: GeminiKey = None
    gemini_model: GeminiModel = "gemini-nano-banana-2.1"
    gemini_base_url: GeminiBaseUrl = "https://generativelanguage.googleapis.com"
    gemini_image_size: GeminiImageSize = "1K"
    gemini_max_calls: GeminiMaxCalls = 4
    gemini_timeout_seconds: GeminiTimeout = 120

    model_checkpoint_dir: AbsolutePath | None = Field(
        None,
        description="SDXL base checkpoint: a diffusers folder or a .safetensors file. "
        "Empty: the demo, which draws plain shapes",
    )
    model_refiner_checkpoint_dir: AbsolutePath | None = Field(
        None, description="SDXL refiner: a diffusers folder. Empty: base makes the whole image"
    )
    model_config_dir: ConfigFolder = None
    models_file: AbsolutePath | None = Field(
        None, description="YAML file with further models and LoRAs by name. Empty: none"
    )
    max_loaded_models: int = Field(
        1,
        ge=1,
        le=64,
        description="Models that a replica keeps in memory at the same time. Where one replica "
        "runs base and refiner, 2 keeps both on the card, if it has room",
    )
    max_loaded_loras: int = Field(
        8, ge=1, le=64, description="LoRAs that stay attached to each loaded model"
    )
    model_device: DeviceName = Field(
        "auto", description="auto, cuda, cuda:N (one card of this machine; needs `up`), mps or cpu"
    )
    model_precision: Literal["fp32", "fp16", "bf16", "auto"] | None = Field(
        None,
        description="Precision of the weights. auto: fp16 on a GPU; on a CPU bf16 if it computes "
        "that, else fp32. Empty: fp16 on a GPU, fp32 on a CPU",
    )
    enable_xformers: XFormers = False
    model_compile: CompileMode = "off"
    model_quantization: Quantization = "off"
    model_max_batch_size: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Images that step together on one replica, twice as many without guidance; "
        "fewer for lack of GPU memory or equal bits. Empty: 4 on CUDA, 2 on the CPU, 1 on Apple",
    )
    total_gpus: int | None = Field(
        None,
        ge=1,
        description="GPUs that the replicas of base and refiner may use together when they scale. "
        "Empty: only max_replicas limits them",
    )
    model_determinism: Determinism = "strict"
    model_cpu_threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="CPU threads of each replica; they decide bits, so use a power of two. "
        "Empty: a fair share of the machine",
    )
    snapshot_interval_steps: int = Field(
        5,
        ge=1,
        le=150,
        description="Denoising steps between two snapshots, from which an image continues when its "
        "process dies",
    )
    default_image_count: int = Field(
        2, ge=1, le=8, description="Images per request when the caller gives no count"
    )
    host: ListenAddress = LOOPBACK
    backend_port: int = Field(4000, ge=1, le=65535, description="Port of the service")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port on which `up` shows Prometheus metrics, to this machine only. "
        "Empty: no metrics",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="text: a line of text for each request and error. json: a JSON object"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least level that is logged; debug adds the probes of /health and /livez",
    )
    image_service_base_url: BaseUrl | None = Field(
        None,
        description="Address under which clients reach the service; printed at start, and allowed "
        "as an origin and a host",
    )
    allowed_origins: Origins = Field(
        (), description="Browser origins that may call, besides local development; comma separated"
    )
    vite_port: int = Field(
        5173, ge=1, le=65535, description="Port of the frontend's development server"
    )
    allowed_hosts: HostNames = ()
    api_keys: TextList = Field(
        (),
        repr=False,
        description="Keys that callers send as `Authorization: Bearer KEY`; comma separated. "
        "Empty: only this machine may call",
    )
    key_weights: Weights = ()
    key_daily_mpsteps: DailyQuotas = ()
    allow_anonymous: bool = Field(
        False, description="1: other machines may call without a key. Behind a proxy, set API_KEYS"
    )
    max_body_mib: int = Field(
        32, ge=1, le=1024, description="Longest request body, in MiB (2**20 bytes)"
    )
    max_open_bodies_mib: int = Field(
        512, ge=1, le=65536, description="Bodies being read and images of open jobs, in MiB"
    )
    max_prompt_chars: PromptLimit = 500
    webhook_urls: WebhookReceivers = ()
    rate_limit_mpsteps_per_minute: float = Field(
        0,
        ge=0,
        description="What each caller may use per minute, in megapixel-steps; an image of 1024 x "
        "1024 pixels and 30 steps is 31. 0: no limit",
    )
    rate_burst_mpsteps: float | None = Field(
        None,
        gt=0,
        description="What a caller may use at once before the rate counts, in megapixel-steps. "
        "Empty: one minute's worth",
    )
    max_queue_seconds: float = Field(
        120, gt=0, le=86400, description="Predicted wait for others above which requests get a 503"
    )
    max_open_requests: int = Field(
        256, ge=1, le=2000, description="Requests for images that may be open in the whole service"
    )
    safety_words_file: AbsolutePath | None = Field(
        None,
        description="File of words and phrases, one per line, that no prompt may contain. "
        "Empty: no filter",
    )
    safety_checker_dir: AbsolutePath | None = Field(
        None,
        description="Folder of the stock safety checker, which judges finished images. "
        "Empty: no filter",
    )
    a1111_api: A1111Api = True
    mcp_api: McpApi = False
    require_terms_acceptance: bool = Field(
        False, description="1: a caller must accept the models' terms first (POST /licenses)"
    )
    ledger_file: AbsolutePath | None = Field(
        None,
        description="File for jobs, idempotency keys and accepted terms. "
        "Empty: a file in ~/.local/state/aura-serve",
    )
    ledger_url: PostgresUrl = None
    ledger_schema: SchemaName = "aura"
    ledger_on_damage: OnDamage = "stop"
    drain_spool: AbsolutePath | None = Field(
        None,
        description="Folder for what `up` has not finished after drain_seconds, or at a second "
        "signal: the next start finishes requests with an `Idempotency-Key`. Empty: they are lost",
    )

    @classmethod
    def read(cls, defaults: Mapping[str, str] | None = None, folder: Path = Path()) -> "Settings":
        """Return the settings in force; `folder` holds the .env files, `defaults` come last.

        Raises `SettingsError` that names the variable and its legal values.
        """
        defaults = dict(defaults or {})
        check_given(defaults)
        return _validated(read_sources(_NAMES, defaults, folder))

    @property
    def origins(self) -> tuple[str, ...]:
        """The browser origins that may call: the list, our own address, local development."""
        return browser_origins(self.allowed_origins, self.image_service_base_url, self.vite_port)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host names of this service, besides the local ones."""
        machine = machine_names() if self.is_public else ()
        return host_names(self.allowed_hosts, self.image_service_base_url, machine)

    @property
    def is_public(self) -> bool:
        """Whether other machines may call: with a key, or because the operator allows it."""
        return bool(self.api_keys) or self.allow_anonymous

    @property
    def rate_limit(self) -> RateLimit | None:
        """The rate limit of each caller, in megapixel-steps per second; None without a limit."""
        rate = self.rate_limit_mpsteps_per_minute
        return RateLimit(rate / 60, self.rate_burst_mpsteps or rate) if rate else None

    @property
    def is_cloud_default(self) -> bool:
        """Whether requests that name no model go to the cloud: a key is set, and no local model."""
        has_local = self.model_checkpoint_dir or self.models_file
        return self.gemini_api_key is not None and not has_local

    def blocked_words(self) -> tuple[str, ...]:
        """Return the words of SAFETY_WORDS_FILE; none without one. Raises `SettingsError`."""
        return read_words(self.safety_words_file) if self.safety_words_file else ()

    @property
    def ledger(self) -> LedgerPlace:
        """Where the ledger is kept."""
        if self.ledger_url is not None:
            return LedgerDatabase(self.ledger_url, self.ledger_schema)
        file = self.ledger_file or default_ledger_file(self.backend_port)
        return LedgerFile(file, self.ledger_on_damage == "replace")


VARIABLES = {field.upper(): field for field in Settings.model_fields}  # the current, bare names
_NAMES = SettingNames(VARIABLES)
_SECRET = {name for name, field in Settings.model_fields.items() if not field.repr}


def is_setting(name: str) -> bool:
    """Return whether a variable is a setting: by its name, with the prefix, or by an old name."""
    return _NAMES.field_of(name) is not None


def is_secret(name: str) -> bool:
    """Return whether a variable sets something that nobody else may see."""
    return _NAMES.field_of(name) in _SECRET


def check_given(given: Mapping[str, str]) -> None:
    """Check that every name is a setting and has a legal value; empty values count as unset.

    Config files go through no other validation. Raises `SettingsError`.
    """
    for name in given:
        if not is_setting(name):
            meant = _NAMES.meant(name)
            remedy = f"Did you mean {meant}?" if meant else "See .env.example"
            raise SettingsError(
                "is not a setting of this service", name, meant or "", subject=name, remedy=remedy
            )
    _validated(_NAMES.given_in(given, "args.settings", warn=False))


def _validated(given: Mapping[str, Given]) -> Settings:
    """Return the settings. Raises `SettingsError` for the first illegal value."""
    values = {field: value for field, (_, value) in given.items() if value}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name, value = given[str(first["loc"][0])]
        is_secret = first["loc"][0] in _SECRET
        subject = name if is_secret else f"{name}={value}"
        raise SettingsError(validation_message(first), name, subject=subject) from None
