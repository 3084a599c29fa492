"""The settings and the serve config, read as the service reads them.

What is wrong with either is a finding here; what depends on them is then not examined.
"""

import os
from pathlib import Path
from typing import Any

from serve_app.config.app_args import AppArgs
from serve_app.config.serve_config import read_config
from serve_app.config.settings import ENV_FILES, Settings
from serve_app.core.errors import SettingsError
from serve_app.doctor.finding import Finding, editing, fail, fine


def read_serve_config(path: Path) -> tuple[dict[str, Any] | None, AppArgs, Finding]:
    """The http options and args of a config, or None and the defaults where it is none."""
    try:
        config = read_config(path)
    except SettingsError as error:
        said = " ".join(str(error).split())
        mend = editing(path)
        if not path.exists():
            said = f"{path} is not there: run this where it is, or name another"
            mend = "aura doctor --config PATH"
        return None, AppArgs(), fail("config", said, mend)
    return config.http, config.args, fine("config", f"{path} is a serve config of this service")


def read_settings(args: AppArgs) -> tuple[Settings | None, Finding]:
    """The settings in force, None where they can't be read."""
    try:
        settings = Settings.read(args.settings)
    except SettingsError as error:
        return None, fail("settings", str(error), _mend(error))
    except UnicodeDecodeError as error:
        files = [name for name in ENV_FILES if not _is_text(Path(name))]
        name = next(iter(files), ENV_FILES[-1])
        return None, fail(
            "settings",
            f"{name} is not UTF-8 text ({error.reason}): PowerShell's > writes UTF-16",
            f"iconv -f UTF-16 -t UTF-8 {name} > {name}.utf8 && mv {name}.utf8 {name}",
        )
    files = [name for name in reversed(ENV_FILES) if Path(name).is_file()]
    ours = sorted(name for name in map(str.upper, Settings.model_fields) if os.environ.get(name))
    sources = [f"{', '.join(ours)} of the environment"] * bool(ours) + files
    return settings, fine("settings", f"from {', then '.join([*sources, 'the defaults'])}")


def _mend(error: SettingsError) -> str:
    """The command for a misspelt name, or the line that takes an illegal value back."""
    name, meant = error.variable, error.suggestion
    if not meant:
        return f"{name.upper()}="
    if name in os.environ:
        return f'export {meant}="${name}"; unset {name}'
    files = [file for file in map(Path, reversed(ENV_FILES)) if file.is_file()]
    file = next(one for one in files if name in one.read_text(encoding="utf-8"))
    return f"sed -i.bak 's/{name}=/{meant}=/' {file}"


def _is_text(file: Path) -> bool:
    try:
        return not file.is_file() or bool(file.read_text(encoding="utf-8") or True)
    except UnicodeDecodeError:
        return False
