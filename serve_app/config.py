"""The serve config as far as this package reads it: its http options, our args, where to listen.

Knows no Ray, so that what is wrong with it can be told before Ray starts, and where Ray is broken.
"""

import socket
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.args import AppArgs
from serve_app.core.errors import SettingsError
from serve_app.settings import Settings

LOOPBACK = "127.0.0.1"


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any], AppArgs]:
    """The http options, the application entry and its args, from a serve config.

    Raises `SettingsError` naming the file and the key.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        application = config["applications"][0]
        args = AppArgs.model_validate(application.get("args") or {})
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise SettingsError(f"{path} is no serve config: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("args", *map(str, first["loc"])))
        said = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{path}: {where}: {said}") from None
    return dict(config.get("http_options") or {}), application, args


def port_of(settings: Settings, http: dict[str, Any]) -> int:
    """BACKEND_PORT where somebody set it, else the config's, else the default."""
    if "backend_port" in settings.model_fields_set:
        return settings.backend_port
    return int(http.get("port", settings.backend_port))


def host_of(settings: Settings, http: dict[str, Any]) -> str:
    """The config's address, but this machine alone while nobody needs a key."""
    host = str(http.get("host", LOOPBACK))
    return host if settings.is_open else LOOPBACK


def check_port(host: str, port: int) -> None:
    """Returns when the service could listen there now. Raises `SettingsError`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"BACKEND_PORT={port} can't be used on {host} ({error.strerror}). Choose another: "
                f"BACKEND_PORT={port + 1} python -m serve_app up",
                "BACKEND_PORT",
            ) from None
