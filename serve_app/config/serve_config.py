"""The serve config: reading it, reporting its problems, and where the service listens.

No Ray, so that a problem is reported before Ray starts, and where Ray does not run.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.config.app_args import AppArgs
from serve_app.config.deprecated_names import with_current_names
from serve_app.config.lint import BUILDER, ConfigProblem, lint
from serve_app.config.settings import Settings
from serve_app.config.strict_yaml import UniqueKeyLoader
from serve_app.core.errors import SettingsError

LOOPBACK = "127.0.0.1"
_APPLIED_BY_UP = {"proxy_location", "http_options", "applications"}
_APPLIED_TO_APPLICATION = {"name", "route_prefix", "import_path", "args", "autoscaling_policy"}


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A serve config without problems."""

    path: Path
    content: Mapping[str, Any]
    application: Mapping[str, Any]  # ours
    args: AppArgs

    @property
    def http(self) -> dict[str, Any]:
        """The HTTP options that the config sets."""
        return dict(self.content.get("http_options", {}))

    def check_applied(self) -> None:
        """Check that `up` applies every key of the config. Raises `SettingsError`."""
        ignored = [
            *sorted(set(self.content) - _APPLIED_BY_UP),
            *sorted(set(self.application) - _APPLIED_TO_APPLICATION),
        ]
        if len(self.content["applications"]) > 1:
            ignored.append("more than one application")
        if ignored:
            raise SettingsError(
                f"has keys that up does not apply: {', '.join(ignored)}",
                subject=str(self.path),
                remedy=f"Remove that, or start with: serve run {self.path}",
            )


def read_config(path: Path) -> ServeConfig:
    """Return the config in a serve config file, or in the manifest of a RayService.

    Raises `SettingsError` that names the file and its first problem.
    """
    config = _load(path)
    problems = list(lint(config))
    if problems:
        more = f" ({len(problems) - 1} more: aura check-config {path})" * (len(problems) > 1)
        raise SettingsError(f"{path}: {problems[0]}{more}")  # as check-config prints it
    ours = next(entry for entry in config["applications"] if entry["import_path"] == BUILDER)
    return ServeConfig(path, config, ours, AppArgs.model_validate(ours.get("args", {})))


def lint_file(path: Path) -> tuple[ConfigProblem, ...]:
    """Return everything wrong with a config; nothing if `read_config` would take it.

    Raises `SettingsError` if the file is not a serve config at all.
    """
    return tuple(lint(_load(path)))


def _load(path: Path) -> dict[str, Any]:
    """Return the content of a config with the current names for all deprecated ones."""
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), UniqueKeyLoader))
        manifests = [document for document in documents if _is_manifest(document)]
        if manifests:
            text = str(manifests[0]["spec"]["serveConfigV2"])
            documents = list(yaml.load_all(text, UniqueKeyLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"is not a serve config: {reason}", subject=str(path)) from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise SettingsError(
            "is not a serve config: it has no keys such as applications", subject=str(path)
        )
    return with_current_names(documents[0], BUILDER, where=str(path))


def _is_manifest(document: Any) -> bool:
    return isinstance(document, dict) and document.get("kind") == "RayService"


def port_of(settings: Settings, http: dict[str, Any]) -> int:
    """Return the port: BACKEND_PORT if it is set, else the config's, else the default."""
    if "backend_port" in settings.model_fields_set:
        return settings.backend_port
    return int(http.get("port", settings.backend_port))


def host_of(settings: Settings, http: dict[str, Any]) -> str:
    """Return the address to listen on: loopback unless other machines may call."""
    host = str(http.get("host", LOOPBACK))
    return host if settings.is_public else LOOPBACK


def bind_error(host: str, port: int) -> str | None:
    """Return why no server can listen on a port now, or None if one can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
    return None


def check_port(host: str, port: int) -> None:
    """Check that the service can listen now. Raises `SettingsError`."""
    if problem := bind_error(host, port):
        raise SettingsError(
            f"can't be used on {host} ({problem})",
            "BACKEND_PORT",
            subject=f"BACKEND_PORT={port}",
            remedy=f"Choose another: BACKEND_PORT={port + 1} aura up",
        )


def check_metrics_port(metrics_port: int | None, service_port: int) -> None:
    """Check that METRICS_PORT is free and not the service's own. Raises `SettingsError`."""
    if metrics_port is None:
        return
    problem = bind_error(LOOPBACK, metrics_port)
    if metrics_port == service_port:
        problem = "it is the port of the service"
    if problem:
        raise SettingsError(
            f"can't be used ({problem})",
            "METRICS_PORT",
            subject=f"METRICS_PORT={metrics_port}",
            remedy=f"Choose another: METRICS_PORT={max(metrics_port, service_port) + 1} aura up",
        )
