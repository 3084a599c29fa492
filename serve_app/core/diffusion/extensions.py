"""Extensions of a base model, such as LoRAs: which ones an image asks for, and how strongly.

No files, no networks: `runtime/extensions` has what each kind does.
"""

from dataclasses import dataclass
from typing import NamedTuple

LORA = "lora"
WEIGHT_RANGE = (-2.0, 2.0)
_LABELS = {LORA: "LoRA"}  # where prose writes a kind in another way than code


def kind_label(kind: str) -> str:
    """Return a kind as sentences write it."""
    return _LABELS.get(kind, kind.replace("_", " "))


class ExtensionKey(NamedTuple):
    """An extension by its kind and its name in MODELS_FILE."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{kind_label(self.kind)} {self.name}"


@dataclass(frozen=True, slots=True, order=True)
class ExtensionRef:
    """An extension that an image asks for; `weight` is how strongly it counts."""

    kind: str
    name: str
    weight: float = 1.0

    @property
    def key(self) -> ExtensionKey:
        """The extension, whatever its weight."""
        return ExtensionKey(self.kind, self.name)
