"""The acceptance of a licence, kept beside the weights it is for, with the commit that was fetched.

Knows no network and no terminal: who asks, and how, is no matter here.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from serve_app.core.service.info import License

FILE = "acceptance.json"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """That somebody accepted a licence, and for what."""

    repository: str
    revision: str  # the commit that the weights are of
    license: str
    license_url: str
    accepted_at: str  # ISO 8601, UTC

    def covers(self, license: License) -> bool:
        """Whether nobody needs to be asked again."""
        return (self.license, self.license_url) == (license.name, license.url)


def recorded(folder: Path) -> Acceptance | None:
    """What stands in a folder; None when nothing does, or nothing that can be read."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Acceptance(**{name: str(value) for name, value in content.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def record(folder: Path, acceptance: Acceptance) -> None:
    """It stands in the folder, which is there. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(acceptance), indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
