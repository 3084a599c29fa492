"""`ImageInputs`: what an image is made from, beside its spec.

No tensors: the runtime turns inputs into latents or conditioning once, at the start.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """The input images of one image, each already at the spec's size.

    `init_image` is RGB, height * width * 3 bytes, for image-to-image; None for text-to-image. It is
    dropped once it has become latents, so that snapshots stay small.
    """

    init_image: bytes | None = None


NO_INPUTS = ImageInputs()
