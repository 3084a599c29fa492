"""Noise from a request's own seed: the n-th draw is the same wherever and whenever it is taken.

Knows no samples. A CPU generator, as stock diffusers is given for reproducible pictures; every
draw has the shape of the latents (posterior, starting and ancestral noise alike).
"""

import torch

from serve_app.core.diffusion.spec import LATENT_CHANNELS


class Noise:
    """The draws of one seed at one latent shape."""

    def __init__(self, seed: int, shape: tuple[int, int]) -> None:
        self._seed = seed
        self._shape = (1, LATENT_CHANNELS, *shape)
        self._drawn = 0
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self, number: int, device: torch.device) -> torch.Tensor:
        """Draw number `number`, counted from 0, on a device: (4, h/8, w/8), fp32.

        In order this costs one draw; out of order the sequence is taken again from the start.
        """
        if number < self._drawn:
            self._generator.manual_seed(self._seed)
            self._drawn = 0
        while True:
            noise = torch.randn(self._shape, generator=self._generator)[0]
            self._drawn += 1
            if self._drawn > number:
                return noise.to(device)
