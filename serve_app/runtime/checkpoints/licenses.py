"""Under what terms a checkpoint's pictures are made: read from its folder, or from its card.

Knows no torch and no HTTP. The operator's own copy of the licence is passed on as it lies there;
the restrictions are a summary of ours, and say so.
"""

import re
from pathlib import Path

from serve_app.core.service.info import License
from serve_app.runtime.checkpoints.checkpoint import REPOSITORY, Checkpoint
from serve_app.runtime.checkpoints.lora_file import LoraFile

RAIL = "CreativeML Open RAIL++-M"
_RAIL_URL = "https://huggingface.co/{}/blob/main/LICENSE.md"
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


def license_of(checkpoint: Checkpoint, said: str | None = None) -> License:
    """The terms of a checkpoint: what the operator has `said`, else its folder or its file, else
    those of the family it belongs to. The folder that lends a single file its configs says nothing
    of the file's terms."""
    if said or checkpoint.file:
        return _license_said(
            checkpoint, said or (checkpoint.file and checkpoint.file.license) or ""
        )
    text = _first(checkpoint.folder, "LICENSE*")
    tags: dict[str, str] = dict(_TAGS.findall(_first(checkpoint.folder, "README*")))
    said = (tags.get("license_name") or tags.get("license") or "").lower()
    if "open rail" in text.lower() or "openrail" in said or not (text or said):
        assumed = "" if text or said else " (assumed: its folder does not say)"
        url = _RAIL_URL.format(REPOSITORY[checkpoint.stage])
        return License(checkpoint.name, RAIL + assumed, url, RESTRICTIONS, text)
    return License(checkpoint.name, said or "see text", "", (), text)


def _license_said(checkpoint: Checkpoint, said: str) -> License:
    if said and "openrail" not in said.lower().replace(" ", ""):
        return License(checkpoint.name, said, "", (), "")
    assumed = "" if said else " (assumed: the file does not say)"
    url = _RAIL_URL.format(REPOSITORY[checkpoint.stage])
    return License(checkpoint.name, RAIL + assumed, url, RESTRICTIONS, "")


def license_of_lora(name: str, file: LoraFile, said: str | None = None) -> License:
    """The terms of a LoRA: what the operator has `said`, else its file's own notes. Nothing is
    taken for granted: people train LoRAs under terms of all kinds."""
    named = said or file.license or "not known"
    restrictions = RESTRICTIONS if "openrail" in named.lower().replace(" ", "") else ()
    return License(name, named, "", restrictions, "")


def license_on_card(repository: str, said: str, url: str) -> License:
    """The terms of a repository whose files are not here yet: what its card says, at `url`.

    Those of SDXL itself are known, whatever a mirror's card says.
    """
    if repository in REPOSITORY.values():
        return License(repository, RAIL, _RAIL_URL.format(repository), RESTRICTIONS, "")
    restrictions = RESTRICTIONS if "openrail" in said.lower() else ()
    name = RAIL if said.lower() == "openrail++" else said or "none named on its card"
    return License(repository, name, url, restrictions, "")


def _first(folder: Path, pattern: str) -> str:
    for file in sorted(folder.glob(pattern)):
        try:
            return file.read_text(encoding="utf-8", errors="replace")[:_LONGEST]
        except OSError:
            continue
    return ""
