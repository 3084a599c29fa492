"""`Parts`: the networks of a stage's model, each behind its contract."""

from dataclasses import dataclass, field

from serve_app.runtime.extensions.extension_set import ExtensionSet
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import Denoiser
from serve_app.runtime.networks.vae import ImageCodec


@dataclass(frozen=True, slots=True)
class Parts:
    """The networks of a stage's model."""

    conditioner: Conditioner
    denoiser: Denoiser
    image_codec: ImageCodec
    extensions: ExtensionSet = field(default_factory=ExtensionSet)
