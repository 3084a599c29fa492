"""What `aura up` shows when the service is ready: where it is, who may call, where its logs are."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from serve_app import __version__
from serve_app.cli.console import console
from serve_app.config.cloud_settings import has_unused_key
from serve_app.config.listening import addresses_of, host_of, port_of
from serve_app.config.network import netloc
from serve_app.config.settings import Settings


def print_summary(
    settings: Settings,
    http: Mapping[str, Any],
    logs: Path,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Print the summary of a service that is ready."""
    address, *others = map(escape, addresses_of(settings, http))
    checkpoint = settings.model_checkpoint_dir
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]Aura Serve[/]", __version__)
    table.add_row("address", f"[bold]{address}[/]")
    for other in others:
        table.add_row("", other)
    table.add_row("listening", escape(netloc(host_of(settings, http), port_of(settings, http))))
    table.add_row("keys", _access(settings))
    if settings.is_cloud_default:
        table.add_row("model", f"gemini: {settings.gemini_model} in Google's cloud, for money")
        table.add_row("", "[yellow]prompts and input images are sent to Google[/]")
    else:
        table.add_row("model", checkpoint.name if checkpoint else "demo: plain shapes")
    if settings.models_file:
        table.add_row("", f"and those of {settings.models_file}")
    if not settings.is_cloud_default and (cloud := _cloud(settings, environ)):
        table.add_row("cloud", cloud)
    if checkpoint is None and not settings.is_cloud_default:
        table.add_row("", "[yellow]for real images: aura download[/]")
    table.add_row("docs", f"{address}/docs")
    if settings.mcp_api:
        table.add_row("assistants", f"{address}/mcp")
    table.add_row("terms", f"{address}/licenses")
    table.add_row("try", f"curl {address}/health")
    if settings.metrics_port:
        table.add_row("metrics", f"curl http://localhost:{settings.metrics_port}/metrics")
    table.add_row("logs", escape(str(logs)))
    table.add_row("stop", "Ctrl-C, which finishes accepted images first")
    console.print(table)


def _cloud(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return what goes to the cloud beside a local model, or why a key is not used."""
    if settings.gemini_api_key is not None:
        return (
            f"[yellow]requests for the model gemini go to Google's {settings.gemini_model}, for "
            "money[/]"
        )
    if has_unused_key(environ):
        return "off: of the shell, AURA_GEMINI_API_KEY alone counts"
    return ""


def _access(settings: Settings) -> str:
    if settings.api_keys:
        return f"{len(settings.api_keys)}, needed for all but /docs, /health, /livez and /licenses"
    if settings.allow_anonymous:
        return "[yellow]none: everyone may call (ALLOW_ANONYMOUS=1)[/]"
    return "none: only this machine may call"
