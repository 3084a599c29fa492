"""The command `check-config`: what is wrong with serve configs, told on the terminal.

Looks at the files alone, so that it says the same of them on every machine. Knows no checks.
"""

from collections.abc import Sequence
from pathlib import Path

from serve_app.config.serve_config import lint_file
from serve_app.core.errors import SettingsError


def check_configs(files: Sequence[Path]) -> int:
    """A line for each slip, or one for a file without any; 1 where there is a slip, else 0."""
    failed = False
    for file in files:
        try:
            told = lint_file(file)
        except SettingsError as error:
            failed = True
            print(error)
            continue
        failed = failed or bool(told)
        print("\n".join(f"{file}: {one}" for one in told or ("every key is one that is read",)))
    return int(failed)
