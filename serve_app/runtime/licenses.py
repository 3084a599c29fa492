"""Under what terms a checkpoint's pictures are made, read from its folder.

Knows no torch and no HTTP. The operator's own copy of the licence is passed on as it lies there;
the restrictions are a summary of ours, and say so.
"""

import re
from pathlib import Path

from serve_app.core.facts import License
from serve_app.runtime.checkpoint import Checkpoint

RAIL = "CreativeML Open RAIL++-M"
_RAIL_URL = "https://huggingface.co/stabilityai/{}/blob/main/LICENSE.md"
_REPOSITORIES = {
    "base": "stable-diffusion-xl-base-1.0",
    "refiner": "stable-diffusion-xl-refiner-1.0",
}
_LONGEST = 100_000  # characters of a licence that are passed on
_TAGS = re.compile(r"^(license|license_name):\s*[\"']?([\w.+-]+)", re.MULTILINE)
RESTRICTIONS = (  # what Attachment A of the licence forbids, in our words; its text binds
    "breaking any law or regulation that applies",
    "exploiting or harming minors, or trying to",
    "making or spreading what is verifiably false in order to harm others",
    "making or spreading personal data that can be used to harm somebody",
    "defaming, disparaging or harassing others",
    "fully automated decisions that affect somebody's legal rights or obligations",
    "discriminating against or harming people for their social behaviour or their personality",
    "exploiting the weaknesses of a group, as of age or disability, in a way that harms them",
    "discriminating by characteristics that the law protects",
    "medical advice, or the interpretation of medical results",
    "the administration of justice, law enforcement, immigration or asylum, as by predicting crime",
)


def license_of(checkpoint: Checkpoint) -> License:
    """The terms of a checkpoint: what its folder says, else those of the family it belongs to."""
    text = _first(checkpoint.folder, "LICENSE*")
    tags: dict[str, str] = dict(_TAGS.findall(_first(checkpoint.folder, "README*")))
    said = (tags.get("license_name") or tags.get("license") or "").lower()
    if "open rail" in text.lower() or "openrail" in said or not (text or said):
        assumed = "" if text or said else " (assumed: its folder does not say)"
        url = _RAIL_URL.format(_REPOSITORIES[checkpoint.stage])
        return License(checkpoint.name, RAIL + assumed, url, RESTRICTIONS, text)
    return License(checkpoint.name, said or "see text", "", (), text)


def _first(folder: Path, pattern: str) -> str:
    for file in sorted(folder.glob(pattern)):
        try:
            return file.read_text(encoding="utf-8", errors="replace")[:_LONGEST]
        except OSError:
            continue
    return ""
