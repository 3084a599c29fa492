"""The licence of a checkpoint or an extension, read from its folder, its file or its model card.

The licence text in a folder is passed on unchanged. `RESTRICTIONS` is this project's summary, and
every place that shows it says so. No torch, no HTTP.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from serve_app.core.diffusion.model_defaults import DMD2, PCM, TURBO
from serve_app.core.diffusion.preconditioning import NetworkOutput
from serve_app.core.service.info import License
from serve_app.runtime.checkpoints.checkpoint import REPOSITORY, Checkpoint
from serve_app.runtime.checkpoints.extension_kinds import ExtensionFile

RAIL = "CreativeML Open RAIL++-M"
_RAIL_URL = "https://huggingface.co/{}/blob/main/LICENSE.md"
_MAX_TEXT = 100_000  # characters of a licence that are passed on
_TAGS = re.compile(r"^(license|license_name):\s*[\"']?([\w.+-]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Published:
    """A published model with a licence of its own, which binds what was made from it too."""

    pattern: re.Pattern[str]  # of names, in lower case
    license: str
    url: str
    output: NetworkOutput | None = None  # of a network with EDM noise: nothing else has it


_PUBLISHED = (
    _Published(
        TURBO,
        "sai-nc-community",  # Stability AI Non-Commercial Research Community License
        "https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md",
    ),
    _Published(
        DMD2,
        "CC BY-NC-SA 4.0 (non-commercial)",
        "https://github.com/tianweiy/DMD2/blob/main/LICENSE.md",
    ),
    _Published(
        PCM,
        "MIT",
        "https://github.com/G-U-N/Phased-Consistency-Model/blob/master/LICENSE",
    ),
    _Published(
        re.compile(r"playground[ _-]?v?2[._]5"),
        "playground-v2dot5-community",
        "https://huggingface.co/playgroundai/playground-v2.5-1024px-aesthetic/blob/main/LICENSE.md",
        NetworkOutput.EDM,
    ),
    _Published(
        re.compile("cosxl"),
        "cosxl-nc-community",  # Stability AI Non-Commercial Research Community License
        "https://huggingface.co/stabilityai/cosxl/blob/main/LICENSE",
        NetworkOutput.VELOCITY,
    ),
)
RESTRICTIONS = (  # a summary of Attachment A of the licence; its own text binds
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


def license_of(checkpoint: Checkpoint, stated: str | None = None) -> License:
    """Return the licence of a checkpoint.

    It is the name that the operator `stated`, or else that of the checkpoint's folder or file, or
    else that of the published model that its noise or its name is of, or else SDXL's own. The
    folder that lends a single file its configs says nothing about the licence of the file.
    """
    if stated or checkpoint.file:
        in_file = checkpoint.file.license if checkpoint.file else ""
        return _named_license(checkpoint, stated or in_file)
    text = _first_text(checkpoint.folder, "LICENSE*")
    tags: dict[str, str] = dict(_TAGS.findall(_first_text(checkpoint.folder, "README*")))
    on_card = (tags.get("license_name") or tags.get("license") or "").lower()
    if not (text or on_card) and (published := _published_license(checkpoint)):
        return published
    if "open rail" in text.lower() or "openrail" in on_card or not (text or on_card):
        assumed = "" if text or on_card else " (assumed: its folder does not say)"
        url = _RAIL_URL.format(REPOSITORY[checkpoint.stage])
        return License(checkpoint.name, RAIL + assumed, url, RESTRICTIONS, text)
    return License(checkpoint.name, on_card or "see text", "", (), text)


def _named_license(checkpoint: Checkpoint, license_name: str) -> License:
    if not license_name and (published := _published_license(checkpoint)):
        return published
    if license_name and not _is_open_rail(license_name):
        return License(checkpoint.name, license_name, "", (), "")
    assumed = "" if license_name else " (assumed: the file does not say)"
    url = _RAIL_URL.format(REPOSITORY[checkpoint.stage])
    return License(checkpoint.name, RAIL + assumed, url, RESTRICTIONS, "")


def _published_license(checkpoint: Checkpoint) -> License | None:
    """Return the licence of the published model that a checkpoint is, or was made from.

    EDM noise says which, whatever the file is called; else the name does.
    """
    noise = checkpoint.noise_config
    output = noise.preconditioning.output if noise.edm else None
    words = " ".join(checkpoint.names).lower()
    for model in _PUBLISHED:
        if output and output is model.output:
            return _assumed(checkpoint, model, "noise")
    for model in _PUBLISHED:
        if model.pattern.search(words):
            return _assumed(checkpoint, model, "name")
    return None


def _assumed(checkpoint: Checkpoint, model: _Published, source: str) -> License:
    return License(
        checkpoint.name, f"{model.license} (assumed from its {source})", model.url, (), ""
    )


def license_of_extension(name: str, file: ExtensionFile, stated: str | None = None) -> License:
    """Return the licence of an extension: the one that the operator `stated`, or else its file's.

    Nothing is assumed, because extensions such as LoRAs are published under licences of all kinds.
    """
    license_name = stated or file.license or "not known"
    restrictions = RESTRICTIONS if _is_open_rail(license_name) else ()
    return License(name, license_name, "", restrictions, "")


def license_on_card(repository: str, tag: str, url: str) -> License:
    """Return the licence of a repository that is not downloaded yet.

    `tag` is the license tag of its model card, and `url` links to the card. The licence of SDXL
    itself is known, whatever the card of a mirror says.
    """
    if repository in REPOSITORY.values():
        return License(repository, RAIL, _RAIL_URL.format(repository), RESTRICTIONS, "")
    restrictions = RESTRICTIONS if "openrail" in tag.lower() else ()
    name = RAIL if tag.lower() == "openrail++" else tag or "none named on its card"
    return License(repository, name, url, restrictions, "")


def _is_open_rail(license_name: str) -> bool:
    return "openrail" in license_name.lower().replace(" ", "")


def _first_text(folder: Path, pattern: str) -> str:
    """Return the start of the first readable file that matches, "" when there is none."""
    for file in sorted(folder.glob(pattern)):
        try:
            return file.read_text(encoding="utf-8", errors="replace")[:_MAX_TEXT]
        except OSError:
            continue
    return ""
