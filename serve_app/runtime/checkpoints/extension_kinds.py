"""The registry of extension kinds, one line each: how each is listed, inspected and run.

No torch: the command line and the builder read MODELS_FILE by it. `runtime/extensions/registry.py`
imports the named classes, where there is torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve_app.core.diffusion.extensions import LORA
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.checkpoints.model_layers import ModelLayers


class ExtensionFile(Protocol):
    """What every inspected file says of itself; each kind may add to it."""

    @property
    def path(self) -> Path:
        """The file on this machine."""

    @property
    def license(self) -> str:
        """The licence that the file names, or ""."""

    def misfit(self, model: ModelLayers) -> str | None:
        """Return why it can't be attached to a model, as a clause; None when it fits."""


@dataclass(frozen=True, slots=True)
class ExtensionKindEntry:
    """One kind of extension."""

    section: str  # of MODELS_FILE
    inspect: Callable[[Path], ExtensionFile]  # without torch; raises `CheckpointError`
    runtime_class: str  # the `ExtensionKind`, as "module:class"


ExtensionKindEntries = Mapping[str, ExtensionKindEntry]  # by kind

EXTENSION_KINDS: ExtensionKindEntries = {
    LORA: ExtensionKindEntry("loras", inspect_lora, "serve_app.runtime.extensions.lora:LoraKind"),
}
