"""The serve config: reading it, and reporting its problems.

No Ray, so that a problem is reported before Ray starts, and where Ray does not run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.config.app_args import AppArgs
from serve_app.config.deprecated_names import with_current_names
from serve_app.config.lint import BUILDER, ConfigProblem, lint
from serve_app.config.serve_schema import sections
from serve_app.config.strict_yaml import UniqueKeyLoader
from serve_app.core.errors import SettingsError
from serve_app.core.suggest import suggest

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


def is_something_else(path: Path) -> bool:
    """Return whether a file is not meant as a serve config: it has no key of one, not misspelt.

    A file that can't be read may be meant as one.
    """
    if path.is_dir():
        return True
    try:
        return not any(suggest(str(key), sections()[()]) for key in _load(path))
    except SettingsError:
        return False


def _load(path: Path) -> dict[str, Any]:
    """Return the content of a config with the current names for all deprecated ones."""
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), UniqueKeyLoader))
        manifests = [document for document in documents if _is_manifest(document)]
        if manifests:
            text = str(manifests[0]["spec"]["serveConfigV2"])
            documents = list(yaml.load_all(text, UniqueKeyLoader))
    except OSError as error:
        raise SettingsError(f"can't be read: {error.strerror}", subject=str(path)) from None
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, (KeyError, TypeError)):
            reason = "the manifest has no config under spec.serveConfigV2"
        raise SettingsError(f"is not a serve config: {reason}", subject=str(path)) from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise SettingsError(
            "is not a serve config: it has no keys such as applications", subject=str(path)
        )
    return with_current_names(documents[0], BUILDER, where=str(path))


def _is_manifest(document: Any) -> bool:
    return isinstance(document, dict) and document.get("kind") == "RayService"
