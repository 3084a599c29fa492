"""`aura check-config`: print what is wrong with serve configs.

Reads the files only, so the result is the same on every machine.
"""

from collections.abc import Sequence
from pathlib import Path

from serve_app.cli.console import FAILED, OK, REFUSED, print_error
from serve_app.config.serve_config import is_something_else, lint_file
from serve_app.core.errors import SettingsError


def check_configs(files: Sequence[Path]) -> int:
    """Print a line for each problem, or one for a file without any; return the exit code.

    A pattern of the shell may name other files too: those are skipped, each by name.
    """
    others = {file for file in files if is_something_else(file)}
    code = OK
    for file in files:
        if file in others:
            print(f"{file}: skipped, it is no serve config")
            continue
        try:
            problems = lint_file(file)
        except SettingsError as error:
            print_error(error)
            code = REFUSED
            continue
        if problems:
            code = max(code, FAILED)
        for line in problems or ("every key is known",):
            print(f"{file}: {line}")
    return code if len(others) < len(files) else REFUSED
