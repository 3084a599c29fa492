"""What a checkpoint's network receives, and what its output means.

`Preconditioning` wraps a network into x -> denoised, as k-diffusion's wrappers do, with the terms
of Karras et al. 2022, equation 7: c_in scales x, c_skip and c_out combine x and the output. No
tensors: the methods take anything with arithmetic. c_noise is the timestep of a schedule.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class NetworkOutput(StrEnum):
    """What a network predicts of x = picture + sigma * noise."""

    NOISE = "epsilon"  # the noise: c_skip = 1, c_out = -sigma
    VELOCITY = "v_prediction"  # Salimans & Ho 2022: a mix of noise and picture
    EDM = "edm"  # Karras et al. 2022: the velocity with the opposite sign


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """How x becomes the input of a network, and its output the denoised picture."""

    output: NetworkOutput = NetworkOutput.NOISE
    sigma_data: float = 1.0  # standard deviation of the latents that it was trained on

    def scaled_input(self, x: Any, sigma: Any) -> Any:
        """Return the network's input: x at unit variance."""
        return x * (1 / (sigma**2 + self.sigma_data**2) ** 0.5)

    def denoised(self, x: Any, sigma: Any, output: Any) -> Any:
        """Return the picture that an output at x means."""
        if self.output is NetworkOutput.NOISE:
            return x - sigma * output
        sign = 1.0 if self.output is NetworkOutput.EDM else -1.0
        variance = sigma**2 + self.sigma_data**2
        c_out = sign * self.sigma_data * sigma / variance**0.5
        return output * c_out + x / (variance / self.sigma_data**2)
