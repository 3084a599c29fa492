"""Where settings are read: the environment, `.env.local`, `.env` and a config, in this order.

The first source that has a value wins. In the environment an empty value wins too and unsets the
setting, so that `METRICS_PORT= make serve` does without what a file says. In a file an empty value
says nothing: templates have them. What `aura up` has taken out of the environment counts as if it
stood there still (`secret_file.py`).
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from serve_app.config.cloud_settings import counts_in
from serve_app.config.secret_file import read_secret_file
from serve_app.config.setting_names import Given, SettingNames

ENV_FILES = (".env", ".env.local")  # the later one wins

_log = logging.getLogger(__name__)


def read_sources(
    names: SettingNames, defaults: Mapping[str, str], folder: Path
) -> dict[str, Given]:
    """Return the settings that the sources give, by field; an empty value is unset.

    `folder` holds the .env files, and `defaults` are those of a serve config. Logs a warning for
    each value that the environment unsets. Raises `SettingsError` for a name that is nearly one of
    the `names`.
    """
    files = [folder / name for name in ENV_FILES]
    sources: list[tuple[str, Mapping[str, str | None]]] = [
        ("args.settings", defaults),
        *((str(file), dotenv_values(file)) for file in files if file.is_file()),
    ]
    given: dict[str, Given] = {}
    labels: dict[str, str] = {}
    for label, source in sources:
        names.refuse_near_misses(source)
        found = names.given_in(source, label)
        given |= found
        labels |= dict.fromkeys(found, label)
    whole = read_secret_file(os.environ) | dict(os.environ)
    environment = {name: value for name, value in whole.items() if counts_in(whole, name)}
    names.refuse_near_misses(environment)
    exported = names.given_in(environment, "the environment", keep_empty=True)
    for field in sorted(labels):
        if field in exported and not exported[field].value:
            _log.warning(
                "%s is empty in the environment, so its value in %s does not count",
                exported[field].name,
                labels[field],
            )
    return given | exported
