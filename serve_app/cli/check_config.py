"""`aura check-config`: print what is wrong with serve configs.

Reads the files only, so the result is the same on every machine.
"""

from collections.abc import Sequence
from pathlib import Path

from serve_app.config.serve_config import lint_file
from serve_app.core.errors import SettingsError


def check_configs(files: Sequence[Path]) -> int:
    """Print a line for each problem, or one for a file without any; return 1 if there is one."""
    failed = False
    for file in files:
        try:
            problems = lint_file(file)
        except SettingsError as error:
            failed = True
            print(error)
            continue
        failed = failed or bool(problems)
        for line in problems or ("every key is known",):
            print(f"{file}: {line}")
    return int(failed)
