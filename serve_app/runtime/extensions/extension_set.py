"""`ExtensionSet`: the extensions of one model, whatever their kinds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from serve_app.core.diffusion.extensions import ExtensionKey, ExtensionRef
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.runtime.extensions.contract import ModelExtension
from serve_app.runtime.extensions.registry import ExtensionKinds
from serve_app.runtime.networks.loading import Modules


@dataclass(frozen=True, slots=True)
class ExtensionFiles:
    """The inspected files of a model's extensions, and the kinds that can open them."""

    kinds: ExtensionKinds
    files: Mapping[ExtensionKey, Any] = field(default_factory=dict)
    capacity: int = 1  # extensions attached at a time

    @property
    def work_per_pixel(self) -> float:
        """The most that any kind with files holds per row and pixel; see `ExtensionKind`."""
        return max((self.kinds[key.kind].work_per_pixel for key in self.files), default=0.0)

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of the largest extensions that can be attached together."""
        sizes = [self.kinds[key.kind].num_bytes(file, dtype) for key, file in self.files.items()]
        return sum(sorted(sizes)[-self.capacity :])

    def open(self, modules: Modules) -> "ExtensionSet":
        """Return the extensions of a model with these networks; nothing is attached yet."""
        by_kind: dict[str, dict[str, Any]] = {}
        for key, file in self.files.items():
            by_kind.setdefault(key.kind, {})[key.name] = file
        return ExtensionSet(
            {kind: self.kinds[kind].open(modules, files) for kind, files in by_kind.items()}
        )


class ExtensionSet:
    """The attached extensions of one model; attaches, detaches and activates by kind."""

    def __init__(self, by_kind: Mapping[str, ModelExtension] | None = None) -> None:
        self._by_kind = dict(by_kind or {})
        self._active: tuple[ExtensionRef, ...] = ()

    @property
    def has_active(self) -> bool:
        """Whether the networks compute with an extension now."""
        return bool(self._active)

    @property
    def attached(self) -> tuple[ExtensionKey, ...]:
        """The extensions that can be activated now."""
        return tuple(
            ExtensionKey(kind, name)
            for kind, extension in self._by_kind.items()
            for name in extension.attached
        )

    def attach(self, key: ExtensionKey) -> None:
        """Make an extension ready. Raises `CheckpointError` when it does not fit the model."""
        self._by_kind[key.kind].attach(key.name)

    def detach(self, keys: Sequence[ExtensionKey]) -> None:
        """Remove extensions from memory."""
        for key in keys:
            self._by_kind[key.kind].detach(key.name)

    def activate(self, refs: tuple[ExtensionRef, ...], rows: Sequence[ImageInputs]) -> None:
        """Let the networks compute with these and no others; see `ModelExtension.activate`."""
        self._active = refs
        for kind, extension in self._by_kind.items():
            extension.activate(tuple(ref for ref in refs if ref.kind == kind), rows)
