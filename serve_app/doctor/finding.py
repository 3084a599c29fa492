"""`Finding`: the result of one check, and the command that fixes what is wrong.

No checks, no terminal.
"""

import re
import shlex
from collections.abc import Container
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from serve_app.core.errors import AuraError

_SETTING = re.compile(r"([A-Z][A-Z0-9_]*)=(\S*)")


class Verdict(StrEnum):
    """What a finding means for the service."""

    OK = "OK"
    WARN = "WARN"  # it starts, but perhaps not as expected
    FAIL = "FAIL"  # it does not start, or not safely
    SKIP = "SKIP"  # not checked, because of another finding or of the platform


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. A problem always comes with its fix, and nothing else has one."""

    check: str
    verdict: Verdict
    message: str  # one sentence: what was found, the value, what is needed
    fix: str = ""  # one command to paste, or one line for .env.local

    def __post_init__(self) -> None:
        if "\n" in self.message or "\n" in self.fix:
            raise ValueError(f"{self.check}: a finding must be one line")
        if bool(self.fix) != (self.verdict in (Verdict.WARN, Verdict.FAIL)):
            raise ValueError(f"{self.check}: WARN and FAIL need a fix, OK and SKIP have none")

    @property
    def is_for_env_file(self) -> bool:
        """Whether the fix is a line for .env.local rather than a command."""
        return _SETTING.fullmatch(self.fix) is not None

    def for_environment(self, exported: Container[str]) -> "Finding":
        """Return the finding with a fix for the shell if the variable to change is exported.

        An exported variable takes precedence over .env.local.
        """
        setting = _SETTING.fullmatch(self.fix)
        if setting is None or setting[1] not in exported:
            return self
        return replace(self, fix=f"export {self.fix}" if setting[2] else f"unset {setting[1]}")


def fine(check: str, message: str) -> Finding:
    """Return a finding that nothing is wrong."""
    return Finding(check, Verdict.OK, message)


def warn(check: str, message: str, fix: str) -> Finding:
    """Return a finding that the service starts, but perhaps not as expected."""
    return Finding(check, Verdict.WARN, message, fix)


def fail(check: str, message: str, fix: str) -> Finding:
    """Return a finding that the service does not start, or not safely."""
    return Finding(check, Verdict.FAIL, message, fix)


def skip(check: str, message: str) -> Finding:
    """Return a finding that something was not checked."""
    return Finding(check, Verdict.SKIP, message)


def edit_command(file: Path) -> str:
    """Return the command that opens a file in an editor: the fix that only a person can make."""
    return f'"${{EDITOR:-vi}}" {shlex.quote(str(file))}'


def problem_of(error: AuraError) -> str:
    """Return what is wrong with what, on one line, without the error's remedy."""
    sentence = f"{error.subject} {error.problem}" if error.subject else error.problem
    return " ".join(sentence.split())
