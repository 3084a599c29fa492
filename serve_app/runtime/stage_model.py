"""`StageModel`: everything a replica's engine runs, for one stage: the four kinds of turn.

Knows no scheduler, threads or waiters. Samples come in and go out as values; what is dear to make
again (guides, noise generators) is kept beside them by id until `forget`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

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
from serve_app.core.diffusion.spec import LATENT_CHANNELS, ImageSpec, Lora
from serve_app.core.errors import OperatorError, ProfileChanged, SafetyBlock
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.work import BatchSize
from serve_app.core.service.moderation import SafetyFilter
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.conditioning import Conditioner, Conditioning
from serve_app.runtime.networks.denoiser import Denoiser, DenoiserInput
from serve_app.runtime.networks.lora_adapters import LoraAdapters
from serve_app.runtime.networks.vae import ImageCodec, RgbImage
from serve_app.runtime.noise import Noise

DeviceSample = Sample[torch.Tensor]  # on the device
HostSample = Sample[npt.NDArray[np.float32]]  # on the wire


@dataclass(slots=True)
class _SampleState:
    """What is kept beside a sample while it is here."""

    noise: Noise
    conditioning: Conditioning | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a stage's model is made of."""

    conditioner: Conditioner
    denoiser: Denoiser
    image_codec: ImageCodec
    adapters: LoraAdapters | None = None  # None: it wears no LoRAs


class Offloadable(Protocol):
    """Where a model's networks are."""

    def offload(self) -> None:
        """Nothing of them is on the device."""

    def restore(self) -> None:
        """They are back as they were; raises what the device raises when there is no room."""


class StageModel:
    """The networks of a stage behind four verbs: condition, encode, step, decode."""

    def __init__(
        self,
        *,
        profile: NumericProfile,
        memory_plan: MemoryPlan,
        device: Device,
        parts: Parts,
        safety: SafetyFilter | None = None,
        offloadable: Offloadable | None = None,
    ) -> None:
        self.profile = profile
        self.memory_plan = memory_plan
        self.device = device
        self._conditioner = parts.conditioner
        self._denoiser = parts.denoiser
        self._pixels = parts.image_codec
        self._adapters = parts.adapters
        self._safety = safety
        self._offloadable = offloadable
        self._states: dict[str, _SampleState] = {}

    @property
    def batch_size(self) -> BatchSize:
        """How many samples step together here, and in how many rows."""
        return BatchSize(self.memory_plan.images, self.profile.lanes)

    @property
    def attached_loras(self) -> tuple[str, ...]:
        """The LoRAs that samples may wear here now."""
        return self._adapters.attached if self._adapters else ()

    def attach(self, name: str, evict: Sequence[str]) -> None:
        """Samples may wear the LoRA; nothing of those to `drop` is in memory any more.

        Raises `OperatorError` when it does not fit, or breaks the promise of `prove_lanes`.
        """
        assert self._adapters is not None
        for gone in evict:
            self._adapters.detach(gone)
        self._adapters.attach(name)
        try:
            self.check_batch_invariance((Lora(name),))
        except Exception:  # out of memory too: what was not proved is not worn
            self._adapters.detach(name)
            raise

    @torch.inference_mode()
    def condition(self, sample: DeviceSample) -> DeviceSample:
        """The sample with its guide made and, for an image from noise, its first latents.

        Raises `ProfileChanged` when other numbers, or another model, began it.
        """
        self._check(sample)
        beside = self._state_of(sample)
        self._activate(sample.active_loras)
        beside.conditioning = guide = self._conditioner.condition(sample.spec, sample.active_loras)
        sample = with_prompt_info(
            with_profile(sample, self.profile.name), guide.chunks, guide.warnings
        )
        if sample.latents is not None or sample.inputs.init_image is not None:
            return sample
        noise = beside.noise.draw(0, self.device.torch_device)
        return with_latents(sample, noise * sample.schedule.init_noise_sigma, noise_draws=1)

    @torch.inference_mode()
    def encode(self, sample: DeviceSample) -> DeviceSample:
        """The sample with its base image as latents, noised to where it enters the schedule.

        Draw 0 picks from the VAE's posterior, draw 1 is the starting noise: diffusers' order.
        """
        if sample.inputs.init_image is None:
            raise ValueError(f"sample {sample.id} has no base image")
        spec, draw = sample.spec, self._state_of(sample).noise.draw
        picture = np.frombuffer(sample.inputs.init_image, np.uint8).reshape(
            spec.height, spec.width, 3
        )
        latents = self._pixels.encode(picture, draw(0, self.device.torch_device))
        noise = draw(1, self.device.torch_device)
        noised = latents + sample.schedule.sigmas[sample.index] * noise
        self.device.synchronize()
        return with_latents(sample, noised, noise_draws=2)

    @torch.inference_mode()
    def step(self, samples: Sequence[DeviceSample], lanes: int) -> list[DeviceSample]:
        """The samples, each one step on. One network call with `lanes` rows; bits that owe nothing
        to the others in it, since every row has its own weights and its own noise."""
        self._activate(samples[0].active_loras)
        x = torch.stack([_latents(s) for s in samples])  # (samples, 4, h/8, w/8)
        denoised = self._denoiser(x, [self._denoiser_input(s) for s in samples], lanes)
        results = [self._advance(s, d) for s, d in zip(samples, denoised, strict=True)]
        self.device.synchronize()
        return results

    @torch.inference_mode()
    def decode(self, sample: DeviceSample) -> RgbImage:
        """The picture of a sample that has taken its last step.

        Raises `SafetyBlock` when the filter refuses it, and `ProfileChanged` as `condition` does.
        """
        self._check(sample)
        picture = self._pixels.decode(_latents(sample))
        if self._safety and self._safety.refuses_image(picture):
            raise SafetyBlock("the safety filter refuses the picture that came of this request")
        return picture

    def offload(self) -> None:
        """Its networks have left the device; it can do nothing until `unpark`, and stays as it was
        fitted and proved."""
        if self._offloadable is not None:
            self._offloadable.offload()

    def restore(self) -> None:
        """Its networks are back, to the same bytes. Raises what the device raises when there is no
        room; then it is parked as before."""
        if self._offloadable is not None:
            self._offloadable.restore()

    def forget(self, id: str) -> None:
        """Nothing is kept beside this sample any more."""
        self._states.pop(id, None)

    @torch.inference_mode()
    def check_batch_invariance(self, loras: tuple[Lora, ...] = ()) -> None:
        """Returns when a row's bits do not depend on its slot or its neighbours, while `loras` are
        worn; raises `OperatorError` when this machine breaks that promise.

        Kernels split work over threads, and a split that is not even treats slots differently:
        seen on CPU with 5 or 6 lanes on 2 threads, and with 7 threads at any number of lanes.
        """
        if not self.profile.strict:
            return
        self._activate(loras)
        draw, lanes = torch.Generator().manual_seed(0), self.profile.lanes
        for shape, more in (((16, 16), ""), ((13, 19), ""), ((16, 16), "BREAK")):
            x = torch.randn(lanes, LATENT_CHANNELS, *shape, generator=draw).to(
                self.device.torch_device
            )
            points = [
                DenoiserInput(1.0 + i, 900.0 - i, self._conditioner.condition(spec, loras))
                for i, spec in enumerate(_unguided_spec(f"{more} proof {i}") for i in range(lanes))
            ]
            straight = self._denoiser(x, points, lanes)
            turned = self._denoiser(x.roll(1, 0), points[-1:] + points[:-1], lanes)
            if not torch.equal(straight, turned.roll(-1, 0)):
                raise OperatorError(
                    f"MODEL_DETERMINISM=strict can't be kept on {self.profile.device} with "
                    f"{lanes} lanes and {self.profile.cpu_threads} CPU threads: a picture's bits "
                    "would depend on its neighbours. Set MODEL_CPU_THREADS to a power of two, or "
                    "MODEL_DETERMINISM=fast"
                )

    def _activate(self, loras: tuple[Lora, ...]) -> None:
        if self._adapters is not None:
            self._adapters.activate(loras)

    def _check(self, sample: DeviceSample) -> None:
        if sample.profile not in (None, self.profile.name):
            raise ProfileChanged(
                f"made under {sample.profile}, this replica runs {self.profile.name}"
            )

    def _state_of(self, sample: DeviceSample) -> _SampleState:
        spec = sample.spec
        return self._states.setdefault(sample.id, _SampleState(Noise(spec.seed, spec.latent_shape)))

    def _denoiser_input(self, sample: DeviceSample) -> DenoiserInput:
        guide = self._states[sample.id].conditioning
        if guide is None:
            raise ValueError(f"sample {sample.id} was not conditioned")
        at = sample.index
        return DenoiserInput(sample.schedule.sigmas[at], sample.schedule.timesteps[at], guide)

    def _advance(self, sample: DeviceSample, denoised: torch.Tensor) -> DeviceSample:
        sampler, memory = sample.spec.sampler, sample.solver_state
        weights = solver_step(sampler.solver, sample.schedule, sample.index, len(memory))
        fresh, draws = None, sample.noise_draws
        if sampler.definition.is_stochastic:
            fresh = self._states[sample.id].noise.draw(draws, self.device.torch_device)
            draws += 1
        moved: torch.Tensor = combine(weights.x_next, _latents(sample), denoised, memory, fresh)
        # Sums are tensors of their own: a view of a row would keep the whole batch alive.
        memory = tuple(
            combine(mix, _latents(sample), denoised, memory, None) for mix in weights.state
        )
        return after_step(sample, moved, memory, draws)


def to_host(sample: DeviceSample) -> HostSample:
    """The sample on the CPU, owning its memory: a snapshot."""
    return map_latents(sample, lambda latents: latents.cpu().numpy().copy())


def to_device(sample: HostSample, device: torch.device) -> DeviceSample:
    """The sample on a device."""
    return map_latents(sample, lambda latents: torch.tensor(latents, device=device))


def _unguided_spec(prompt: str) -> ImageSpec:
    return ImageSpec(prompt=prompt, seed=0, width=128, height=128, steps=1, guidance=1.0)


def _latents(sample: DeviceSample) -> torch.Tensor:
    if sample.latents is None:
        raise ValueError(f"sample {sample.id} has no latents yet")
    return sample.latents
