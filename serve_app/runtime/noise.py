"""Noise from a request's seed: draw n has the same values on every replica and at every step.

The generator is on the CPU, as diffusers recommends for reproducible images. Every draw, whether
posterior, initial or ancestral noise, has the shape of the latents.
"""

import torch

from serve_app.core.diffusion.spec import LATENT_CHANNELS
from serve_app.runtime.memory.upload import upload


class Noise:
    """The draws of one seed at one latent shape."""

    def __init__(self, seed: int, shape: tuple[int, int]) -> None:
        self._seed = seed
        self._shape = (1, LATENT_CHANNELS, *shape)
        self._drawn = 0
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self, number: int, device: torch.device) -> torch.Tensor:
        """Return draw `number`, counted from 0, on a device: (4, h/8, w/8), fp32.

        The next draw costs one call of `randn`; for an earlier draw, the sequence starts over.
        """
        if number < self._drawn:
            self._generator.manual_seed(self._seed)
            self._drawn = 0
        while True:
            noise = torch.randn(self._shape, generator=self._generator)[0]
            self._drawn += 1
            if self._drawn > number:
                return upload(noise, device)
