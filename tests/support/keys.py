"""Short names for keys of models and extensions."""

from collections.abc import Mapping
from typing import TypeVar

from serve_app.core.diffusion.extensions import LORA, ExtensionKey, ExtensionRef
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import Stage

T = TypeVar("T")
REFINER = ModelKey(Stage.REFINER, "refiner")


def base_key(name: str) -> ModelKey:
    """Return the key of the base model of that name."""
    return ModelKey(Stage.BASE, name)


def by_base_key(by_name: Mapping[str, T]) -> dict[ModelKey, T]:
    """Return what belongs to base models, by their keys instead of their names."""
    return {base_key(name): value for name, value in by_name.items()}


def lora(name: str, weight: float = 1.0) -> ExtensionRef:
    """Return a LoRA that an image asks for."""
    return ExtensionRef(LORA, name, weight)


def lora_key(name: str) -> ExtensionKey:
    """Return the key of the LoRA of that name."""
    return ExtensionKey(LORA, name)


def by_lora_key(by_name: Mapping[str, T]) -> dict[ExtensionKey, T]:
    """Return what belongs to LoRAs, by their keys instead of their names."""
    return {lora_key(name): value for name, value in by_name.items()}
