"""`Finding`: what one check saw, what it makes of it, and the command that mends it.

Knows no checks and no terminal.
"""

import re
import shlex
from collections.abc import Container
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

_SETTING = re.compile(r"([A-Z][A-Z0-9_]*)=(\S*)")


class Verdict(StrEnum):
    """What a finding means for the service."""

    OK = "OK"
    WARN = "WARN"  # it starts, but not as somebody may expect
    FAIL = "FAIL"  # it does not start, or not safely
    SKIP = "SKIP"  # not examined, because of another finding or of the platform


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination. Whatever is wrong comes with what mends it."""

    check: str
    verdict: Verdict
    message: str  # one sentence: what was found, which value, what is needed
    fix: str = ""  # one command to paste, or one line for .env.local

    def __post_init__(self) -> None:
        if "\n" in self.message or "\n" in self.fix:
            raise ValueError(f"{self.check}: a finding is one line")
        if bool(self.fix) != (self.verdict in (Verdict.WARN, Verdict.FAIL)):
            raise ValueError(f"{self.check}: what is wrong, and nothing else, has what mends it")

    @property
    def is_for_env_file(self) -> bool:
        """Whether the mend is a line for .env.local rather than a command."""
        return _SETTING.fullmatch(self.fix) is not None

    def for_environment(self, exported: Container[str]) -> "Finding":
        """The same, mended where the variable stands: an exported one wins over .env.local."""
        found = _SETTING.fullmatch(self.fix)
        if found is None or found[1] not in exported:
            return self
        return replace(self, fix=f"export {self.fix}" if found[2] else f"unset {found[1]}")


def fine(check: str, said: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, said)


def warn(check: str, said: str, mend: str) -> Finding:
    """It starts, but not as somebody may expect."""
    return Finding(check, Verdict.WARN, said, mend)


def fail(check: str, said: str, mend: str) -> Finding:
    """It does not start, or not safely."""
    return Finding(check, Verdict.FAIL, said, mend)


def skip(check: str, said: str) -> Finding:
    """It was not examined."""
    return Finding(check, Verdict.SKIP, said)


def editing(file: Path) -> str:
    """The mend of what only its operator can write: the command that opens the file."""
    return f'"${{EDITOR:-vi}}" {shlex.quote(str(file))}'
