"""Read the settings and the serve config as the service does.

A problem with either is a finding; the checks that depend on it are then skipped.
"""

import os
from pathlib import Path
from typing import Any

from serve_app.config.app_args import AppArgs
from serve_app.config.cloud_settings import counts_in
from serve_app.config.serve_config import read_config
from serve_app.config.setting_sources import ENV_FILES
from serve_app.config.settings import Settings, is_setting
from serve_app.core.errors import SettingsError
from serve_app.doctor.finding import Finding, edit_command, fail, fine, problem_of


def read_serve_config(path: Path) -> tuple[dict[str, Any] | None, AppArgs, Finding]:
    """Return the HTTP options and the args of a serve config; None and defaults if unreadable."""
    try:
        config = read_config(path)
    except SettingsError as error:
        if path.exists():
            finding = fail("config", problem_of(error), edit_command(path))
        else:
            finding = fail(
                "config",
                f"{path} does not exist: run this in the folder that has it, or name another",
                "aura doctor --config PATH",
            )
        return None, AppArgs(), finding
    return config.http, config.args, fine("config", f"{path} is a serve config of this service")


def read_settings(args: AppArgs) -> tuple[Settings | None, Finding]:
    """Return the settings in force; None if they can't be read."""
    try:
        settings = Settings.read(args.settings)
    except SettingsError as error:
        hint = f"; did you mean {error.suggestion}?" if error.suggestion else ""
        return None, fail("settings", problem_of(error) + hint, _fix(error))
    except UnicodeDecodeError as error:
        files = [name for name in ENV_FILES if not _is_text(Path(name))]
        name = next(iter(files), ENV_FILES[-1])
        return None, fail(
            "settings",
            f"{name} is not UTF-8 text ({error.reason}): PowerShell's > writes UTF-16",
            f"iconv -f UTF-16 -t UTF-8 {name} > {name}.utf8 && mv {name}.utf8 {name}",
        )
    files = [name for name in reversed(ENV_FILES) if Path(name).is_file()]
    set_names = sorted(  # an empty one unsets what a file says
        name if value else f"{name}="
        for name, value in os.environ.items()
        if is_setting(name) and counts_in(os.environ, name)
    )
    sources = [f"the environment ({', '.join(set_names)})"] * bool(set_names) + files
    return settings, fine("settings", f"read from {', then '.join([*sources, 'the defaults'])}")


def _fix(error: SettingsError) -> str:
    """Return the command for a misspelt name, or the line that clears an illegal value."""
    name, suggestion = error.variable, error.suggestion
    if not suggestion:
        return f"{name.upper()}="
    if name in os.environ:
        return f'export {suggestion}="${name}"; unset {name}'
    files = [file for file in map(Path, reversed(ENV_FILES)) if file.is_file()]
    file = next(file for file in files if name in file.read_text(encoding="utf-8"))
    return f"sed -i.bak 's/{name}=/{suggestion}=/' {file}"


def _is_text(file: Path) -> bool:
    try:
        if file.is_file():
            file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True
