"""`StageModel`: the networks of one stage, and the turns that run them.

No scheduler, no threads. Samples come in and go out as values. What is expensive to make again
(conditioning, noise generators) is kept by the samples' ids until `forget`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from serve_app.core.diffusion.extensions import ExtensionKey, ExtensionRef
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.sample import (
    Sample,
    after_step,
    map_latents,
    with_latents,
    with_profile,
    with_prompt_info,
)
from serve_app.core.diffusion.solver import combine, solver_step
from serve_app.core.diffusion.spec import LATENT_CHANNELS, ImageSpec
from serve_app.core.errors import OperatorError, OutputNotFinite, ProfileChanged, SafetyBlock
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.work import BatchSize
from serve_app.core.service.moderation import ImageFilter
from serve_app.runtime.extensions.extension_set import ExtensionSet
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.conditioning import Conditioner, ScheduledConditioning
from serve_app.runtime.networks.denoiser import Denoiser, DenoiserInput
from serve_app.runtime.networks.vae import ImageCodec, RgbImage
from serve_app.runtime.noise import Noise

DeviceSample = Sample[torch.Tensor]  # latents on the device
HostSample = Sample[npt.NDArray[np.float32]]  # latents in the host's memory, ready to travel


@dataclass(slots=True)
class _SampleState:
    """What is kept for a sample between its turns."""

    noise: Noise
    conditioning: ScheduledConditioning | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """The networks of a stage's model, each behind its contract."""

    conditioner: Conditioner
    denoiser: Denoiser
    image_codec: ImageCodec
    extensions: ExtensionSet = field(default_factory=ExtensionSet)


class Offloadable(Protocol):
    """A model's networks, which can leave the device and come back."""

    def offload(self) -> None:
        """Move the networks off the device."""

    def restore(self) -> None:
        """Bring the networks back; raise what the device raises when there is no memory."""


class StageModel:
    """The networks of a stage behind four verbs: condition, encode, step, decode."""

    def __init__(
        self,
        *,
        profile: NumericProfile,
        memory_plan: MemoryPlan,
        device: Device,
        parts: Parts,
        safety: ImageFilter | None = None,
        offloadable: Offloadable | None = None,
    ) -> None:
        self.profile = profile
        self.memory_plan = memory_plan
        self.device = device
        self._conditioner = parts.conditioner
        self._denoiser = parts.denoiser
        self._image_codec = parts.image_codec
        self._extensions = parts.extensions
        self._safety = safety
        self._offloadable = offloadable
        self._states: dict[str, _SampleState] = {}

    @property
    def batch_size(self) -> BatchSize:
        """How many samples step together, and in how many rows."""
        return BatchSize(self.memory_plan.images, self.profile.lanes)

    @property
    def attached_extensions(self) -> tuple[ExtensionKey, ...]:
        """The extensions that samples may use now."""
        return self._extensions.attached

    def attach(self, key: ExtensionKey, evict: Sequence[ExtensionKey]) -> None:
        """Attach an extension, after `evict` has left memory.

        Raises `OperatorError` when it does not fit, or breaks batch invariance.
        """
        self._extensions.detach(evict)
        self._extensions.attach(key)
        try:
            self.check_batch_invariance((ExtensionRef(*key),))
        except Exception:  # out of memory too: an unchecked extension is not used
            self._extensions.detach([key])
            raise

    @torch.inference_mode()
    def condition(self, sample: DeviceSample) -> DeviceSample:
        """Encode the sample's prompts; draw the first latents of an image that starts from noise.

        Raises `ProfileChanged` when another numeric profile, or another model, began it.
        """
        self._check_profile(sample)
        state, extensions = self._state_of(sample), sample.active_extensions
        self._extensions.activate(extensions, _rows([sample]))
        conditioning = self._conditioner.condition(sample.spec, extensions, sample.step)
        state.conditioning = conditioning
        sample = with_profile(sample, self.profile.name)
        sample = with_prompt_info(sample, conditioning.chunks, conditioning.warnings)
        if sample.latents is not None or sample.needs_encoding:
            return sample
        noise = state.noise.draw(0, self.device.torch_device)
        return with_latents(sample, noise * sample.schedule.init_noise_sigma, noise_draws=1)

    @torch.inference_mode()
    def encode(self, sample: DeviceSample) -> DeviceSample:
        """Encode the initial image to latents, with the noise of where it enters the schedule.

        Draw 0 samples the VAE's posterior and draw 1 is the starting noise, in diffusers' order.
        """
        if sample.inputs.init_image is None:
            raise ValueError(f"sample {sample.id} has no initial image")
        spec, draw = sample.spec, self._state_of(sample).noise.draw
        image = np.frombuffer(sample.inputs.init_image, np.uint8).reshape(
            spec.height, spec.width, 3
        )
        latents = self._image_codec.encode(image, draw(0, self.device.torch_device))
        noise = draw(1, self.device.torch_device)
        noised = latents + sample.schedule.sigmas[sample.index] * noise
        self.device.synchronize()
        return with_latents(sample, noised, noise_draws=2)

    @torch.inference_mode()
    def step(self, samples: Sequence[DeviceSample], lanes: int) -> list[DeviceSample]:
        """Take one step of every sample, in one UNet call with `lanes` rows.

        Every row has its own solver weights and its own noise, so that a sample's bits do not
        depend on the other samples in the call.
        """
        self._extensions.activate(samples[0].active_extensions, _rows(samples))
        x = torch.stack([_latents(s) for s in samples])  # (samples, 4, h/8, w/8)
        denoised = self._denoiser(x, [self._denoiser_input(s) for s in samples], lanes)
        results = [self._advance(s, d) for s, d in zip(samples, denoised, strict=True)]
        self.device.synchronize()
        return results

    @torch.inference_mode()
    def decode(self, sample: DeviceSample) -> RgbImage:
        """Return the image of a sample that has taken its last step.

        Raises `SafetyBlock` when the filter refuses it, and `ProfileChanged` as `condition` does.
        """
        self._check_profile(sample)
        image = self._image_codec.decode(_latents(sample))
        if self._safety and self._safety.refuses_image(image):
            raise SafetyBlock("the safety filter refuses the picture that came of this request")
        return image

    def offload(self) -> None:
        """Move the networks off the device.

        The model can't run until `restore`, which changes neither its memory plan nor its numeric
        profile.
        """
        if self._offloadable is not None:
            self._offloadable.offload()

    def restore(self) -> None:
        """Bring the networks back, with the same bytes.

        Raises what the device raises when there is no memory; the model then stays offloaded.
        """
        if self._offloadable is not None:
            self._offloadable.restore()

    def forget(self, id: str) -> None:
        """Drop what is kept for a sample."""
        self._states.pop(id, None)

    @torch.inference_mode()
    def check_batch_invariance(self, extensions: tuple[ExtensionRef, ...] = ()) -> None:
        """Check that a row's bits depend neither on its slot nor on its neighbours.

        Kernels split work over threads, and an uneven split treats slots differently: seen on CPU
        with 5 or 6 lanes on 2 threads, and with 7 threads at any number of lanes. Raises
        `OperatorError` when this machine breaks the promise of strict mode with these extensions,
        and `OutputNotFinite` when a result is not finite: NaN is unequal to itself, wherever it
        comes from.
        """
        if not self.profile.strict:
            return
        generator, lanes = torch.Generator().manual_seed(0), self.profile.lanes
        self._extensions.activate(extensions, [NO_INPUTS] * lanes)
        for shape, words in (((16, 16), ""), ((13, 19), ""), ((16, 16), "BREAK")):
            x = torch.randn(lanes, LATENT_CHANNELS, *shape, generator=generator)
            x = x.to(self.device.torch_device)
            specs = [_unguided_spec(f"{words} proof {lane}") for lane in range(lanes)]
            inputs = [
                DenoiserInput(
                    1.0 + i, 900.0 - i, self._conditioner.condition(spec, extensions).at(0)
                )
                for i, spec in enumerate(specs)
            ]
            denoised = self._denoiser(x, inputs, lanes)
            if not denoised.isfinite().all():
                raise OutputNotFinite(
                    "the UNet's output is not finite (NaN or infinite)",
                    subject=self.profile.name,
                    remedy="Check the weights with: aura doctor --deep",
                )
            rolled = self._denoiser(x.roll(1, 0), inputs[-1:] + inputs[:-1], lanes)
            if not torch.equal(denoised, rolled.roll(-1, 0)):
                raise OperatorError(
                    f"MODEL_DETERMINISM=strict can't be kept on {self.profile.device} with "
                    f"{lanes} lanes and {self.profile.cpu_threads} CPU threads: a picture's bits "
                    "would depend on its neighbours",
                    remedy="Set MODEL_CPU_THREADS to a power of two, or MODEL_DETERMINISM=fast",
                )

    def _check_profile(self, sample: DeviceSample) -> None:
        if sample.profile not in (None, self.profile.name):
            raise ProfileChanged(
                f"made under {sample.profile}, this replica runs {self.profile.name}"
            )

    def _state_of(self, sample: DeviceSample) -> _SampleState:
        spec = sample.spec
        return self._states.setdefault(sample.id, _SampleState(Noise(spec.seed, spec.latent_shape)))

    def _denoiser_input(self, sample: DeviceSample) -> DenoiserInput:
        conditioning, index = self._states[sample.id].conditioning, sample.index
        if conditioning is None:
            raise ValueError(f"sample {sample.id} was not conditioned")
        sigma, timestep = sample.schedule.sigmas[index], sample.schedule.timesteps[index]
        return DenoiserInput(sigma, timestep, conditioning.at(sample.step))

    def _advance(self, sample: DeviceSample, denoised: torch.Tensor) -> DeviceSample:
        sampler, state = sample.spec.sampler, sample.solver_state
        step = solver_step(sampler.solver, sample.schedule, sample.index, len(state))
        noise, draws = None, sample.noise_draws
        if sampler.definition.is_stochastic:
            noise = self._states[sample.id].noise.draw(draws, self.device.torch_device)
            draws += 1
        x_next: torch.Tensor = combine(step.x_next, _latents(sample), denoised, state, noise)
        # Sums are tensors of their own: a view of a row would keep the whole batch in memory.
        state = tuple(
            combine(weights, _latents(sample), denoised, state, None) for weights in step.state
        )
        return after_step(sample, x_next, state, draws)


def to_host(sample: DeviceSample) -> HostSample:
    """Copy the sample to the host, with memory of its own: a snapshot."""
    return map_latents(sample, lambda latents: latents.cpu().numpy().copy())


def to_device(sample: HostSample, device: torch.device) -> DeviceSample:
    """Copy the sample to a device."""
    return map_latents(sample, lambda latents: torch.tensor(latents, device=device))


def _unguided_spec(prompt: str) -> ImageSpec:
    return ImageSpec(prompt=prompt, seed=0, width=128, height=128, steps=1, guidance=1.0)


def _rows(samples: Sequence[DeviceSample]) -> list[ImageInputs]:
    """Return the inputs of each UNet row that a batch has, in the order of `UNetDenoiser`."""
    return [sample.inputs for sample in samples for _ in range(sample.spec.rows)]


def _latents(sample: DeviceSample) -> torch.Tensor:
    if sample.latents is None:
        raise ValueError(f"sample {sample.id} has no latents yet")
    return sample.latents
