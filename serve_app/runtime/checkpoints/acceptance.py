"""The record that somebody accepted a licence, kept in the folder of the weights it covers.

No network and no terminal: the command line asks the question.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from serve_app.core.service.info import License

FILE = "acceptance.json"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """One accepted licence, and the weights it was accepted for."""

    repository: str
    revision: str  # the commit of the downloaded weights
    license: str
    license_url: str
    accepted_at: str  # ISO 8601, UTC

    def covers(self, license: License) -> bool:
        """Return whether this acceptance is for the given licence."""
        return (self.license, self.license_url) == (license.name, license.url)


def read(folder: Path) -> Acceptance | None:
    """Return the acceptance recorded in a folder; None without a readable one."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Acceptance(**{name: str(value) for name, value in content.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write(folder: Path, acceptance: Acceptance) -> None:
    """Record an acceptance in a folder, which is created if it does not exist.

    Raises `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(acceptance), indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
