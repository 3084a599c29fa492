"""The file by which `aura up` hands secrets to its Ray: an environment is read by too many.

Ray gives its environment to all of its processes, and shows it on its dashboard; whatever they
start inherits it. The file is for its owner alone, and is deleted when the service ends.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from serve_app.core.errors import SettingsError

VARIABLE = "AURA_SECRET_FILE"  # names the file


def take_secrets(
    environ: Mapping[str, str], is_secret: Callable[[str], bool]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return an environment without its secrets, and these. An empty value is none."""
    secrets = {name: value for name, value in environ.items() if value and is_secret(name)}
    return {name: value for name, value in environ.items() if name not in secrets}, secrets


def write_secret_file(secrets: Mapping[str, str], folder: Path) -> Path:
    """Write secrets to a new file in the folder that nobody else may read; return its path."""
    descriptor, path = tempfile.mkstemp(prefix="aura-secrets-", suffix=".json", dir=folder)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:  # mkstemp made it with mode 0600
        json.dump(dict(secrets), file)
    return Path(path)


def read_secret_file(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets of the file that the environment names, if it names one.

    Raises `SettingsError` if it can't be read; its text shows none of them.
    """
    path = environ.get(VARIABLE)
    if not path:
        return {}
    try:
        secrets = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise SettingsError(
            f"can't be read: {reason}",
            VARIABLE,
            subject=f"{VARIABLE}={path}",
            remedy="Start the service again with: aura up",
        ) from None
    return {str(name): str(value) for name, value in secrets.items()}


def delete_secret_file(environ: Mapping[str, str]) -> None:
    """Delete the file that the environment names, if there is one."""
    if path := environ.get(VARIABLE):
        with suppress(OSError):
            Path(path).unlink()
