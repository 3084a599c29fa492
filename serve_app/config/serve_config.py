"""The serve config: what it says, every slip in it, and where to listen.

Knows no Ray, so that what is wrong with it can be told before Ray starts, and where Ray is broken.
"""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.config.app_args import AppArgs
from serve_app.config.lint import BUILDER, lint
from serve_app.config.serve_schema import ServedApplication, ServeFile
from serve_app.config.settings import Settings
from serve_app.config.strict_yaml import UniqueKeyLoader
from serve_app.core.errors import SettingsError

LOOPBACK = "127.0.0.1"
_BY_UP = (
    {"proxy_location", "http_options", "applications"},
    {  # which `up` applies
        "name",
        "route_prefix",
        "import_path",
        "args",
        "autoscaling_policy",
    },
)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A serve config in which every key has a meaning."""

    path: Path
    file: ServeFile
    application: ServedApplication
    args: AppArgs

    @property
    def http(self) -> dict[str, Any]:
        """The http options that it names."""
        return self.file.http_options.model_dump(exclude_unset=True)

    def check_applied(self) -> None:
        """Returns where `up` applies all of it. Raises `SettingsError`."""
        of_file, of_application = _BY_UP
        left_out = [
            *sorted(self.file.model_fields_set - of_file),
            *sorted(self.application.model_fields_set - of_application),
        ]
        if len(self.file.applications) > 1:
            left_out.append("more than one application")
        if left_out:
            raise SettingsError(
                f"{self.path}: up does not apply {', '.join(left_out)}: remove that, or start with "
                f"serve run {self.path}"
            )


def read_config(path: Path) -> ServeConfig:
    """The config of this service in a serve config, or in the manifest of a RayService.

    Raises `SettingsError` naming the file and its first slip.
    """
    config = _load(path)
    found = list(lint(config))
    if found:
        more = f" ({len(found) - 1} more: aura check-config {path})"
        raise SettingsError(f"{path}: {found[0]}{more if len(found) > 1 else ''}")
    file = ServeFile.model_validate(config)
    application = next(one for one in file.applications if one.import_path == BUILDER)
    return ServeConfig(path, file, application, AppArgs.model_validate(application.args))


def lint_file(path: Path) -> tuple[str, ...]:
    """All that is wrong with a config, each in a sentence that names the key; nothing where
    `read_config` would take it. Raises `SettingsError` where it is none at all."""
    return tuple(lint(_load(path)))


def _load(path: Path) -> dict[str, Any]:
    try:
        found = list(yaml.load_all(path.read_text(encoding="utf-8"), UniqueKeyLoader))
        manifests = [one for one in found if _is_manifest(one)]
        if manifests:
            found = list(yaml.load_all(str(manifests[0]["spec"]["serveConfigV2"]), UniqueKeyLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        told = " ".join(str(error).split())
        raise SettingsError(f"{path} is no serve config: {told}") from None
    if len(found) != 1 or not isinstance(found[0], dict):
        raise SettingsError(f"{path} is no serve config: it must hold keys, as applications")
    return found[0]


def _is_manifest(document: Any) -> bool:
    return isinstance(document, dict) and document.get("kind") == "RayService"


def port_of(settings: Settings, http: dict[str, Any]) -> int:
    """BACKEND_PORT where somebody set it, else the config's, else the default."""
    if "backend_port" in settings.model_fields_set:
        return settings.backend_port
    return int(http.get("port", settings.backend_port))


def host_of(settings: Settings, http: dict[str, Any]) -> str:
    """The config's address, but this machine alone while nobody needs a key."""
    host = str(http.get("host", LOOPBACK))
    return host if settings.is_public else LOOPBACK


def check_port(host: str, port: int) -> None:
    """Returns when the service could listen there now. Raises `SettingsError`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"BACKEND_PORT={port} can't be used on {host} ({error.strerror})",
                "BACKEND_PORT",
                remedy=f"Choose another: BACKEND_PORT={port + 1} aura up",
            ) from None
