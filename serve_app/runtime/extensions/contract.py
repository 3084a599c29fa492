"""What a kind of extension must offer: attach, detach, and activate for a batch.

Samples with equal extensions share batches: every active `ExtensionRef`, weight included, is part
of the batch key. What an active extension costs is measured: `TurnKind.extensions` separates turns
by the kinds that are active in them.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.runtime.networks.loading import Modules

F = TypeVar("F", contravariant=True)  # what a kind knows of a file before it is attached


class ModelExtension(Protocol):
    """The extensions of one kind on one model.

    A kind with networks of its own keeps them in `Modules.beside` while they are attached, in the
    dtype of the UNet and on the device of the model, so that they leave it and come back with the
    model.
    """

    @property
    def attached(self) -> tuple[str, ...]:
        """The names of the extensions that can be activated now."""

    def attach(self, name: str) -> None:
        """Make an extension ready. Raises `CheckpointError` when it does not fit the model."""

    def detach(self, name: str) -> None:
        """Remove an extension from memory, and from the active ones."""

    def activate(self, refs: tuple[ExtensionRef, ...], rows: Sequence[ImageInputs]) -> None:
        """Let the networks compute with these, all of them attached, and with no others.

        `rows` are the inputs of the images in the coming call, those of each UNet row in its order;
        the padding after them has none. A kind that takes images of its own finds them there.
        """


class ExtensionKind(Protocol[F]):
    """A kind of extension, as the registry names it."""

    @property
    def work_per_pixel(self) -> float:
        """Numbers that active extensions hold per row of a step and pixel of the image."""

    def num_bytes(self, file: F, dtype: torch.dtype) -> int:
        """Return the bytes that an attached extension takes on the device."""

    def check_values(self, file: F) -> None:
        """Read the numbers of a whole file, as `aura doctor` does.

        Raises `CheckpointError`, with the path as its subject, when the file would be refused for
        them.
        """

    def open(self, modules: Modules, files: Mapping[str, F]) -> ModelExtension:
        """Return the kind's side of one model. Nothing is attached yet; `files` are by name."""
