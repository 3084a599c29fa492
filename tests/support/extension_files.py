"""Inspected LoRA files as a model's extensions."""

from collections.abc import Mapping

from serve_app.runtime.checkpoints.extension_kinds import EXTENSION_KINDS
from serve_app.runtime.checkpoints.lora_file import LoraFile
from serve_app.runtime.extensions.extension_set import ExtensionFiles
from serve_app.runtime.extensions.registry import runtime_kinds
from tests.support.keys import by_lora_key


def lora_files(files: Mapping[str, LoraFile], *, capacity: int = 1) -> ExtensionFiles:
    """Return these LoRAs, by name, as the extensions of a model."""
    return ExtensionFiles(runtime_kinds(EXTENSION_KINDS), by_lora_key(files), capacity)
