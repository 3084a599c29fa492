"""`Parts`: the networks of a stage's model, each behind its contract."""

from dataclasses import dataclass, field
from typing import Protocol

from serve_app.runtime.extensions.extension_set import ExtensionSet
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import Denoiser
from serve_app.runtime.networks.vae import ImageCodec
from serve_app.runtime.previews import LatentToRgb


@dataclass(frozen=True, slots=True)
class Parts:
    """The networks of a stage's model."""

    conditioner: Conditioner
    denoiser: Denoiser
    image_codec: ImageCodec
    extensions: ExtensionSet = field(default_factory=ExtensionSet)
    latent_to_rgb: LatentToRgb | None = None  # None: there are no previews


class Offloadable(Protocol):
    """A model's networks, which can leave the device and come back."""

    def offload(self) -> None:
        """Move the networks off the device."""

    def restore(self) -> None:
        """Bring the networks back; raise what the device raises when there is no memory."""
