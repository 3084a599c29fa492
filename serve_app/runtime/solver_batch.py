"""The solvers of a batch: every sample's weighted sums, in one operation over all of them.

A loop over samples launches some kernels for each, and on a GPU a launch costs as much as the sum
of a small image. torch's foreach operations compute the same products and sums, rounded alike, in
one launch for a list of tensors, and give each result memory of its own.
"""

from collections.abc import Sequence
from itertools import islice

import torch

from serve_app.core.diffusion.sample import after_step
from serve_app.core.diffusion.solver import solver_step, terms
from serve_app.runtime.live_sample import DeviceSample

WeightedSum = Sequence[tuple[float, torch.Tensor]]  # weights and terms, at least one


def advance(
    samples: Sequence[DeviceSample],
    denoised: torch.Tensor,
    noises: Sequence[torch.Tensor | None],
) -> list[DeviceSample]:
    """Return the samples after their solvers' steps, each with weights of its own.

    `denoised` is (samples, 4, h/8, w/8); a stochastic sampler's sample has its noise, (4, h/8,
    w/8), and others None. Results have memory of their own: a view of a row would keep the whole
    batch.
    """
    sums: list[WeightedSum] = []
    sizes = []
    for sample, own_denoised, noise in zip(samples, denoised.unbind(), noises, strict=True):
        x, state = sample.latents, sample.solver_state
        step = solver_step(sample.spec.sampler.solver, sample.schedule, sample.index, len(state))
        sums.append(terms(step.x_next, x, own_denoised, state, noise))
        sums += (terms(weights, x, own_denoised, state, None) for weights in step.state)
        sizes.append(len(step.state))
    totals = iter(weighted_sums(sums))
    return [
        after_step(
            sample,
            next(totals),
            tuple(islice(totals, size)),
            sample.noise_draws + (noise is not None),
        )
        for sample, noise, size in zip(samples, noises, sizes, strict=True)
    ]


def weighted_sums(sums: Sequence[WeightedSum]) -> list[torch.Tensor]:
    """Return the value of each sum, its terms added from left to right.

    All tensors are on one device and of one dtype.
    """
    products = iter(
        torch._foreach_mul(
            [term for terms in sums for _, term in terms],
            [weight for terms in sums for weight, _ in terms],
        )
    )
    by_sum = [[next(products) for _ in terms] for terms in sums]
    for position in range(1, max(map(len, by_sum), default=0)):
        longer = [products for products in by_sum if len(products) > position]
        torch._foreach_add_(
            [products[0] for products in longer], [products[position] for products in longer]
        )
    return [products[0] for products in by_sum]
