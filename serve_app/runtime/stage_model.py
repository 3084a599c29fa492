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
from serve_app.core.diffusion.sample import Sample, advanced, carried, entered, told, under
from serve_app.core.diffusion.solver import STOCHASTIC, update, weighed
from serve_app.core.diffusion.spec import ImageSpec, Lora
from serve_app.core.errors import OperatorError, ProfileChanged, SafetyBlock
from serve_app.core.scheduling.memory_plan import Fit
from serve_app.core.scheduling.step_scheduler import BatchSize
from serve_app.core.service.moderation import SafetyFilter
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.conditioning import Conditioner, Guide
from serve_app.runtime.networks.denoiser import Denoiser, Point
from serve_app.runtime.networks.lora_adapters import Adapters
from serve_app.runtime.networks.vae import Picture, Pixels
from serve_app.runtime.noise import Noise

Live = Sample[torch.Tensor]  # on the device
Packed = Sample[npt.NDArray[np.float32]]  # on the wire


@dataclass(slots=True)
class _Beside:
    """What is kept beside a sample while it is here."""

    noise: Noise
    guide: Guide | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a stage's model is made of."""

    conditioner: Conditioner
    denoiser: Denoiser
    pixels: Pixels
    adapters: Adapters | None = None  # None: it wears no LoRAs


class Parking(Protocol):
    """Where a model's networks are."""

    def park(self) -> None:
        """Nothing of them is on the device."""

    def unpark(self) -> None:
        """They are back as they were; raises what the device raises when there is no room."""


class StageModel:
    """The networks of a stage behind four verbs: condition, encode, step, decode."""

    def __init__(
        self,
        *,
        profile: NumericProfile,
        fit: Fit,
        device: Device,
        parts: Parts,
        safety: SafetyFilter | None = None,
        parking: Parking | None = None,
    ) -> None:
        self.profile = profile
        self.fit = fit
        self.device = device
        self._conditioner = parts.conditioner
        self._denoiser = parts.denoiser
        self._pixels = parts.pixels
        self._adapters = parts.adapters
        self._safety = safety
        self._parking = parking
        self._beside: dict[str, _Beside] = {}

    @property
    def batch(self) -> BatchSize:
        """How many samples step together here, and in how many rows."""
        return BatchSize(self.fit.images, self.profile.lanes)

    @property
    def loras(self) -> tuple[str, ...]:
        """The LoRAs that samples may wear here now."""
        return self._adapters.attached if self._adapters else ()

    def attach(self, name: str, drop: Sequence[str]) -> None:
        """Samples may wear the LoRA; nothing of those to `drop` is in memory any more.

        Raises `OperatorError` when it does not fit, or breaks the promise of `prove_lanes`.
        """
        assert self._adapters is not None
        for gone in drop:
            self._adapters.detach(gone)
        self._adapters.attach(name)
        try:
            self.prove_lanes((Lora(name),))
        except Exception:  # out of memory too: what was not proved is not worn
            self._adapters.detach(name)
            raise

    @torch.inference_mode()
    def condition(self, sample: Live) -> Live:
        """The sample with its guide made and, for an image from noise, its first latents.

        Raises `ProfileChanged` when other numbers, or another model, began it.
        """
        self._check(sample)
        beside = self._kept(sample)
        self._wear(sample.loras)
        beside.guide = guide = self._conditioner.guide(sample.spec, sample.loras)
        sample = told(under(sample, self.profile.name), guide.chunks, guide.warnings)
        if sample.latents is not None or sample.source is not None:
            return sample
        noise = beside.noise.draw(0, self.device.torch_device)
        return entered(sample, noise * sample.schedule.initial_scale, draws=1)

    @torch.inference_mode()
    def encode(self, sample: Live) -> Live:
        """The sample with its base image as latents, noised to where it enters the schedule.

        Draw 0 picks from the VAE's posterior, draw 1 is the starting noise: diffusers' order.
        """
        if sample.source is None:
            raise ValueError(f"sample {sample.id} has no base image")
        spec, draw = sample.spec, self._kept(sample).noise.draw
        picture = np.frombuffer(sample.source, np.uint8).reshape(spec.height, spec.width, 3)
        latents = self._pixels.encode(picture, draw(0, self.device.torch_device))
        noise = draw(1, self.device.torch_device)
        noised = latents + sample.schedule.sigmas[sample.index] * noise
        self.device.finish()
        return entered(sample, noised, draws=2)

    @torch.inference_mode()
    def step(self, samples: Sequence[Live], lanes: int) -> list[Live]:
        """The samples, each one step on. One network call with `lanes` rows; bits that owe nothing
        to the others in it, since every row has its own weights and its own noise."""
        self._wear(samples[0].loras)
        x = torch.stack([_latents(s) for s in samples])  # (samples, 4, h/8, w/8)
        denoised = self._denoiser(x, [self._point(s) for s in samples], lanes)
        results = [self._settled(s, d) for s, d in zip(samples, denoised, strict=True)]
        self.device.finish()
        return results

    @torch.inference_mode()
    def decode(self, sample: Live) -> Picture:
        """The picture of a sample that has taken its last step.

        Raises `SafetyBlock` when the filter refuses it, and `ProfileChanged` as `condition` does.
        """
        self._check(sample)
        picture = self._pixels.decode(_latents(sample))
        if self._safety and self._safety.refuses_picture(picture):
            raise SafetyBlock("the safety filter refuses the picture that came of this request")
        return picture

    def park(self) -> None:
        """Its networks have left the device; it can do nothing until `unpark`, and stays as it was
        fitted and proved."""
        if self._parking is not None:
            self._parking.park()

    def unpark(self) -> None:
        """Its networks are back, to the same bytes. Raises what the device raises when there is no
        room; then it is parked as before."""
        if self._parking is not None:
            self._parking.unpark()

    def forget(self, id: str) -> None:
        """Nothing is kept beside this sample any more."""
        self._beside.pop(id, None)

    @torch.inference_mode()
    def prove_lanes(self, loras: tuple[Lora, ...] = ()) -> None:
        """Returns when a row's bits do not depend on its slot or its neighbours, while `loras` are
        worn; raises `OperatorError` when this machine breaks that promise.

        Kernels split work over threads, and a split that is not even treats slots differently:
        seen on CPU with 5 or 6 lanes on 2 threads, and with 7 threads at any number of lanes.
        """
        if not self.profile.strict:
            return
        self._wear(loras)
        draw, lanes = torch.Generator().manual_seed(0), self.profile.lanes
        for shape, more in (((16, 16), ""), ((13, 19), ""), ((16, 16), "BREAK")):
            x = torch.randn(lanes, 4, *shape, generator=draw).to(self.device.torch_device)
            points = [
                Point(1.0 + i, 900.0 - i, self._conditioner.guide(spec, loras))
                for i, spec in enumerate(_plain_spec(f"{more} proof {i}") for i in range(lanes))
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

    def _wear(self, loras: tuple[Lora, ...]) -> None:
        if self._adapters is not None:
            self._adapters.wear(loras)

    def _check(self, sample: Live) -> None:
        if sample.profile not in (None, self.profile.name):
            raise ProfileChanged(
                f"made under {sample.profile}, this replica runs {self.profile.name}"
            )

    def _kept(self, sample: Live) -> _Beside:
        spec = sample.spec
        return self._beside.setdefault(sample.id, _Beside(Noise(spec.seed, spec.latent_shape)))

    def _point(self, sample: Live) -> Point:
        guide = self._beside[sample.id].guide
        if guide is None:
            raise ValueError(f"sample {sample.id} was not conditioned")
        at = sample.index
        return Point(sample.schedule.sigmas[at], sample.schedule.timesteps[at], guide)

    def _settled(self, sample: Live, denoised: torch.Tensor) -> Live:
        solver, memory = sample.spec.sampler.solver, sample.memory
        weights = update(solver, sample.schedule, sample.index, len(memory))
        fresh, draws = None, sample.draws
        if solver in STOCHASTIC:
            fresh = self._beside[sample.id].noise.draw(draws, self.device.torch_device)
            draws += 1
        moved: torch.Tensor = weighed(weights.moved, _latents(sample), denoised, memory, fresh)
        # Sums are tensors of their own: a view of a row would keep the whole batch alive.
        memory = tuple(
            weighed(mix, _latents(sample), denoised, memory, None) for mix in weights.memory
        )
        return advanced(sample, moved, memory, draws)


def packed(sample: Live) -> Packed:
    """The sample on the CPU, owning its memory: a snapshot."""
    return carried(sample, lambda latents: latents.cpu().numpy().copy())


def unpacked(sample: Packed, device: torch.device) -> Live:
    """The sample on a device."""
    return carried(sample, lambda latents: torch.tensor(latents, device=device))


def _plain_spec(prompt: str) -> ImageSpec:
    return ImageSpec(prompt=prompt, seed=0, width=128, height=128, steps=1, guidance=1.0)


def _latents(sample: Live) -> torch.Tensor:
    if sample.latents is None:
        raise ValueError(f"sample {sample.id} has no latents yet")
    return sample.latents
