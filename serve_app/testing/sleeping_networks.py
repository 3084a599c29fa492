"""Networks that sleep for a stated time, and fail at the step that a prompt names.

A size in pixels counts as one `SCALE` times as wide and high, so that latents and images are small
and nothing but the sleep takes time. The latents are a function of the request and of every step
taken, and the picture is a digest of the last latents: a step that was skipped, repeated, taken by
the other stage or with another image's prompt shows in every pixel. The denoiser multiplies and
adds, which rounds alike in every slot of a batch, so that the bits do not depend on the neighbours.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b, shake_128
from pathlib import Path

import numpy as np
import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.prompt import MAX_CHUNKS
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.networks.conditioning import (
    Conditioner,
    Conditioning,
    ScheduledConditioning,
)
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.text_encoders import TokenizedPrompt
from serve_app.runtime.networks.vae import DecodedImage, RgbImage, check_decoded
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.testing.fault import Fault, FaultKind, parse_faults

SCALE = 4
NOISE = NoiseConfig.from_scheduler_config({})
_PICTURE = (8, 8, 3)
_leaked: list[bytearray] = []
_broken: list[Fault] = []  # what has broken this process's device


@dataclass(frozen=True, slots=True, eq=False)
class SleepingConditioning(Conditioning):
    """Conditioning with what the sleeping denoiser makes of it."""

    tone: float = 0.0  # in [0, 1), a digest of the prompts and the guidance
    image: str = ""  # a digest of what tells images apart
    faults: tuple[tuple[float, Fault], ...] = ()  # each with the timestep of its step


class SleepingConditioner(Conditioner):
    """A `Conditioner` that reads the faults of a prompt and finds the timesteps of their steps."""

    def condition(
        self, spec: ImageSpec, extensions: tuple[ExtensionRef, ...] = (), first_step: int = 0
    ) -> ScheduledConditioning:
        """See `Conditioner`."""
        plain = super().condition(spec, extensions, first_step)
        texts = list(zip(spec.prompts_by_step, spec.negative_prompts_by_step, strict=True))
        texts = texts[plain.first_step :]
        by_texts = {
            own: self._sleeping(spec, own, at)
            for own, at in dict(zip(texts, plain.by_step, strict=True)).items()
        }
        return replace(plain, by_step=tuple(by_texts[own] for own in texts))

    def _sleeping(
        self, spec: ImageSpec, texts: tuple[str, str], plain: Conditioning
    ) -> SleepingConditioning:
        """Return the conditioning of the steps with these texts."""
        faults = parse_faults(spec.prompt)
        schedule = make_schedule(NOISE, spec.sampler, spec.steps, spec.strength, spec.handoff)
        timesteps = dict(enumerate(schedule.timesteps))
        image = repr((spec.prompt, spec.seed, spec.steps, spec.latent_shape)).encode()
        prompts = repr((*texts, spec.negative_prompt is None, spec.guidance)).encode()
        return SleepingConditioning(
            plain.positive,
            plain.negative,
            plain.guidance_scale,
            tone=int.from_bytes(blake2b(prompts, digest_size=4).digest()) / 2**32,
            image=blake2b(image, digest_size=8).hexdigest(),
            faults=tuple(
                (timesteps[fault.step], fault) for fault in faults if fault.step in timesteps
            ),
        )


class SleepingDenoiser:
    """A `Denoiser` that takes the stated time, with the faults that the images' prompts name.

    A fault that happens a limited number of times is counted by files in the folder `strikes`,
    which outlive the replica. Without the folder there are no faults.
    """

    def __init__(self, stage: Stage, speed: GpuSpeed, strikes: Path | None = None) -> None:
        self._stage, self._speed, self._strikes = stage, speed, strikes

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        """Sleep for one step, then return the denoised latents."""
        height, width = (8 * SCALE * side for side in x.shape[-2:])
        if _broken:
            raise RuntimeError("the device was broken before")
        faults = [self._faults(at) for at in inputs]
        slow = (f.size for row in faults for f in row if f.kind is FaultKind.SLOW)
        slowest = max(slow, default=1.0)
        seconds = self._speed.step(self._stage, width, height, lanes, shallow=inputs[0].shallow)
        time.sleep(slowest * seconds)
        for fault in (fault for row in faults for fault in row):
            _act(fault)
        keep = x.new_tensor([0.5 / (1.0 + at.sigma) for at in inputs]).view(-1, 1, 1, 1)
        tone = x.new_tensor([self._tone(at) for at in inputs]).view(-1, 1, 1, 1)
        denoised = x * keep + tone
        for number, row in enumerate(faults):
            if FaultKind.NAN in [fault.kind for fault in row]:
                denoised[number] = math.nan
        return denoised

    def forget(self) -> None:
        """See `Denoiser`. It keeps nothing."""

    def _tone(self, at: DenoiserInput) -> float:
        """Return what a step adds, which differs by prompt, step and stage."""
        tone = at.conditioning.tone if isinstance(at.conditioning, SleepingConditioning) else 0.0
        return math.sin(at.timestep + 7.0 * tone + (self._stage is Stage.REFINER))

    def _faults(self, at: DenoiserInput) -> list[Fault]:
        """Return the faults that happen to an image at this step."""
        conditioning, folder = at.conditioning, self._strikes
        if not isinstance(conditioning, SleepingConditioning) or folder is None:
            return []
        return [
            fault
            for timestep, fault in conditioning.faults
            if timestep == at.timestep and _strike(folder, conditioning.image, fault)
        ]


class SleepingVae:
    """An `ImageCodec` that takes the stated time and returns a small digest of the latents."""

    def __init__(self, speed: GpuSpeed) -> None:
        self._speed = speed

    def decode(self, latents: torch.Tensor) -> DecodedImage:
        """Sleep for one decode, then return the image; raise `NumericFault` for NaN."""
        height, width = (8 * SCALE * side for side in latents.shape[-2:])
        time.sleep(self._speed.decode(width, height))
        check_decoded(latents=bool(latents.isfinite().all()), pixels=True)
        digest = shake_128(latents.contiguous().numpy().tobytes()).digest(math.prod(_PICTURE))
        return DecodedImage(np.frombuffer(digest, np.uint8).reshape(_PICTURE).copy())

    def encode(self, image: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        """Sleep for as long as a decode, then return latents that depend on image and noise."""
        time.sleep(self._speed.decode(SCALE * image.shape[1], SCALE * image.shape[0]))
        digest = blake2b(np.ascontiguousarray(image).tobytes(), digest_size=4).digest()
        return posterior_noise * 0.5 + int.from_bytes(digest) / 2**32


class SleepingTextEncoders:
    """`TextEncoders` that take the stated time and return zeros."""

    def __init__(self, speed: GpuSpeed) -> None:
        self._speed = speed

    def tokenize(self, prompt: str, name: str, max_chunks: int = MAX_CHUNKS) -> TokenizedPrompt:
        """Return an empty prompt."""
        return TokenizedPrompt(((),), ())

    def encode(
        self, prompt: TokenizedPrompt, chunks: int, extensions: tuple[ExtensionRef, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sleep for one prompt, then return embeddings and the pooled embedding."""
        time.sleep(self._speed.prompt_seconds)
        return torch.zeros(77 * chunks, 8), torch.zeros(4)

    def clear_cache(self) -> None:
        """Do nothing: every prompt is encoded each time."""


def _strike(folder: Path, image: str, fault: Fault) -> bool:
    """Count one more strike at an image; return whether its fault happens once more."""
    if fault.times is None:
        return True
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(fault.times):
        with suppress(FileExistsError):
            (folder / f"{image}-{fault.step}-{number}").touch(exist_ok=False)
            return True
    return False


def _act(fault: Fault) -> None:
    """Do to this process what the fault says; return if the step goes on."""
    match fault.kind:
        case FaultKind.HANG:
            threading.Event().wait()
        case FaultKind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case FaultKind.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case FaultKind.BREAK:
            _broken.append(fault)
            raise RuntimeError("a fault that the prompt asks for, which breaks the device")
        case FaultKind.FAIL:
            raise RuntimeError("a fault that the prompt asks for")
        case FaultKind.LEAK:
            _leaked.append(bytearray(os.urandom(int(fault.size * 2**20))))
        case FaultKind.SLOW | FaultKind.NAN:
            pass
