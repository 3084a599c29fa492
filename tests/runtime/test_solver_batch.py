"""A step's solver: one operation over the batch, with the bits of a loop over its samples."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.solver import combine, solver_step
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.runtime.live_sample import DeviceSample, to_device
from serve_app.runtime.noise import Noise
from serve_app.runtime.stage_model import StageModel
from tests.support.analytic_model import CPU, ConstantDenoiser, analytic_model
from tests.support.engine_runs import sample_of

STEPS = 6


def begun(model: StageModel, sampler: Sampler, seed: int = 3) -> DeviceSample:
    spec = ImageSpec(
        prompt="a fox",
        seed=seed,
        width=64,
        height=64,
        steps=STEPS,
        guidance=1.0,
        sampler=sampler,
    )
    return model.condition(to_device(sample_of(spec, f"{sampler}-{seed}"), CPU.torch_device))


def looped(sample: DeviceSample, target: float) -> tuple[torch.Tensor, ...]:
    """Return the next latents and solver state of one sample, by one sum after the other."""
    x, state = sample.latents, sample.solver_state
    assert x is not None
    denoised, noise = torch.full_like(x, target), None
    step = solver_step(sample.spec.sampler.solver, sample.schedule, sample.index, len(state))
    if sample.spec.sampler.definition.is_stochastic:
        noise = Noise(sample.spec.seed, (8, 8)).draw(sample.noise_draws, CPU.torch_device)
    sums = [combine(step.x_next, x, denoised, state, noise)]
    sums += [combine(weights, x, denoised, state, None) for weights in step.state]
    return tuple(sums)


def test_a_batch_of_all_samplers_has_the_bits_of_a_loop_over_its_samples() -> None:
    model = analytic_model(ConstantDenoiser(0.1))
    samples = [begun(model, sampler) for sampler in Sampler]
    for _ in range(STEPS):
        expected = [looped(sample, 0.1) for sample in samples]
        samples = model.step(samples, len(samples))
        for sample, (latents, *state) in zip(samples, expected, strict=True):
            assert sample.latents is not None
            assert torch.equal(sample.latents, latents)
            assert len(sample.solver_state) == len(state)
            for ours, theirs in zip(sample.solver_state, state, strict=True):
                assert torch.equal(ours, theirs)


def test_a_sample_shares_its_memory_with_no_other() -> None:
    model = analytic_model(ConstantDenoiser())
    samples = model.step([begun(model, Sampler.UNIPC, seed) for seed in (1, 2)], 2)
    tensors = [tensor for sample in samples for tensor in (sample.latents, *sample.solver_state)]
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None}
    sizes = {tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None}
    assert len(storages) == len(tensors)
    assert sizes == {4 * 8 * 8 * 4}


class CountedOperations(TorchDispatchMode):
    """Counts what is launched on the device."""

    count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


def test_a_step_launches_as_many_operations_for_eight_samples_as_for_one() -> None:
    counts = []
    for number in (1, 8):
        model = analytic_model(ConstantDenoiser())
        samples = [begun(model, Sampler.DPMPP_2M, seed) for seed in range(number)]
        operations: Any = CountedOperations  # torch's base class has no types
        with operations() as counted:
            samples = model.step(model.step(samples, 8), 8)
        counts.append(counted.count)
    assert counts[0] == counts[1]
