"""One step of each sampler, as arithmetic on anything with + and *.

Knows no tensors, no networks and no loops: it is handed numbers and gives back a weighted sum.
In the noise convention x = picture + sigma * noise every sampler here is one linear form,

    x' = keep * x + pull * denoised + recall * previous_denoised + stir * fresh_noise

so a batch may mix samplers: each row has its own four weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

from serve_app.core.spec import Sampler

STOCHASTIC = frozenset({Sampler.EULER_A})  # draw fresh noise at every step
MULTISTEP = frozenset({Sampler.DPMPP_2M, Sampler.DPMPP_2M_KARRAS})  # remember one denoised


@dataclass(frozen=True, slots=True)
class Update:
    """The weights of one step."""

    keep: float
    pull: float
    recall: float = 0.0
    stir: float = 0.0


def update(sampler: Sampler, sigmas: Sequence[float], index: int, *, remembers: bool) -> Update:
    """The weights of step `index`, from `sigmas[index]` to `sigmas[index + 1]`.

    `remembers` says whether the previous step's denoised is at hand; without it a multistep
    sampler takes a first-order step, as it does when the last sigma is 0.

    Euler: Karras et al. 2022, algorithm 2 without churn. Euler ancestral: k-diffusion's split of
    the step into sigma_down and sigma_up. DPM++ 2M: Lu et al. 2022, algorithm 2 (midpoint).
    """
    now, after = sigmas[index], sigmas[index + 1]
    if sampler in STOCHASTIC:
        up = sqrt(max(0.0, after**2 * (now**2 - after**2) / now**2))
        down = sqrt(max(0.0, after**2 - up**2))
        return Update(keep=down / now, pull=1 - down / now, stir=up)
    keep = after / now
    if sampler in MULTISTEP and remembers and after > 0:
        width, width_before = log(now / after), log(sigmas[index - 1] / now)
        lean = (1 - keep) * width / (2 * width_before)
        return Update(keep=keep, pull=1 - keep + lean, recall=-lean)
    return Update(keep=keep, pull=1 - keep)


def apply(weights: Update, x: Any, denoised: Any, previous: Any, fresh: Any) -> Any:
    """One step taken: the new x. Terms without a weight are not touched, so they may be None."""
    moved = weights.keep * x + weights.pull * denoised
    if weights.recall:
        moved = moved + weights.recall * previous
    if weights.stir:
        moved = moved + weights.stir * fresh
    return moved
