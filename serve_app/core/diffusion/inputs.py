"""`ImageInputs`: what an image is made from, beside its spec.

No tensors: the runtime turns inputs into latents or conditioning.
"""

from dataclasses import dataclass, replace

from serve_app.core.diffusion.spec import ImageSpec


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """The input images of one image, each already at the spec's size.

    `init_image` is RGB, height * width * 3 bytes, for image-to-image; None for text-to-image.
    """

    init_image: bytes | None = None

    def check(self, spec: ImageSpec) -> None:
        """Raise `ValueError` if inputs and spec disagree."""
        if (self.init_image is None) != (spec.strength is None):
            raise ValueError("an initial image needs a strength, and a strength an initial image")
        if self.init_image is not None and len(self.init_image) != spec.width * spec.height * 3:
            raise ValueError("the initial image has another size than the spec")

    def after_encoding(self) -> "ImageInputs":
        """Return what the steps still need once there are latents, so that snapshots stay small.

        The initial image is not needed: the latents were made from it.
        """
        return replace(self, init_image=None)


NO_INPUTS = ImageInputs()
