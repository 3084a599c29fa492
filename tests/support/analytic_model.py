"""Doubles with known answers: real implementations of the runtime's contracts."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.prompt import MAX_CHUNKS, parse
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.engine import Engine
from serve_app.runtime.extensions.contract import ModelExtension
from serve_app.runtime.extensions.extension_set import ExtensionSet
from serve_app.runtime.lane_counts import LaneCounts
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import Loader, ModelCache
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.text_encoders import TokenizedPrompt
from serve_app.runtime.networks.vae import DecodedImage, ImageCodec, RgbImage, check_decoded
from serve_app.runtime.parts import Offloadable, Parts
from serve_app.runtime.previews import LatentToRgb
from serve_app.runtime.stage_model import StageModel
from tests.support.engine_runs import NOISE

CPU = Device(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 1)
CHECKPOINT = Checkpoint(Stage.BASE, Path(), "analytic", CheckpointScheduler(NOISE), 64, False, True)


class ConstantDenoiser:
    """Every picture is the same shade: every sampler must land on it exactly.

    It counts calls and rows, can be held at a gate, and can be told to fail.
    """

    def __init__(self, target: float = 0.25) -> None:
        self.target = target
        self.batches: list[tuple[int, int]] = []  # samples and lanes of each call
        self.entered = threading.Event()  # set by each call, before it waits at the gate
        self.gate = threading.Event()
        self.gate.set()
        self.patience = 10.0  # seconds at the gate
        self.failures: list[Exception] = []
        self.forgotten = 0

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        self.entered.set()
        assert self.gate.wait(self.patience)
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append((len(inputs), lanes))
        return torch.full_like(x, self.target)

    def forget(self) -> None:
        self.forgotten += 1


class MeanPixels:
    """A picture's shade is its latents' mean."""

    def decode(self, latents: torch.Tensor) -> DecodedImage:
        check_decoded(latents=bool(latents.isfinite().all()), pixels=True)
        side = np.full((latents.shape[1] * 8, latents.shape[2] * 8, 3), 255, np.uint8)
        return DecodedImage((side * float(latents.mean())).astype(np.uint8))

    def encode(self, picture: RgbImage, posterior_noise: torch.Tensor) -> torch.Tensor:
        return torch.full_like(posterior_noise, float(picture.mean()) / 255)


class BlankTextEncoders:
    """Every prompt is zeros, a chunk for each of its sections; a shouted one is warned of."""

    def tokenize(self, prompt: str, name: str, max_chunks: int = MAX_CHUNKS) -> TokenizedPrompt:
        warnings = (f"the {name} shouts",) if "!" in prompt else ()
        return TokenizedPrompt(tuple(((),) for _ in parse(prompt)), warnings)

    def encode(
        self, reading: TokenizedPrompt, chunks: int, extensions: tuple[ExtensionRef, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(77 * chunks, 8), torch.zeros(4)

    def clear_cache(self) -> None:
        pass


class RecordingExtension:
    """A kind of extension that only records what is attached and active, and for which rows."""

    def __init__(self) -> None:
        self.attached: tuple[str, ...] = ()
        self.active: tuple[ExtensionRef, ...] = ()
        self.rows: list[ImageInputs] = []

    def attach(self, name: str) -> None:
        self.attached = (*self.attached, name)

    def detach(self, name: str) -> None:
        self.activate((), ())
        self.attached = tuple(key for key in self.attached if key != name)

    def activate(self, refs: tuple[ExtensionRef, ...], rows: Sequence[ImageInputs]) -> None:
        assert {ref.name for ref in refs} <= set(self.attached)
        self.active, self.rows = refs, list(rows)


def analytic_model(
    denoiser: ConstantDenoiser,
    *,
    lane_counts: tuple[int, ...] = (8,),
    stage: Stage = Stage.BASE,
    model: str = "analytic",
    images: int = 4,
    extensions: Mapping[str, ModelExtension] | None = None,
    parking: Offloadable | None = None,
    pixels: ImageCodec | None = None,
    device: Device = CPU,
    latent_to_rgb: LatentToRgb | None = None,
) -> StageModel:
    lanes = max(lane_counts, default=0)  # none in fast mode
    profile = NumericProfile(
        stage, "cpu", "float32", "float32", "none", lanes, (), 1, "analytic", model
    )
    return StageModel(
        profile=profile,
        memory_plan=MemoryPlan(images),
        device=device,
        parts=Parts(
            Conditioner(BlankTextEncoders(), CHECKPOINT),
            denoiser,
            pixels or MeanPixels(),
            ExtensionSet(extensions),
            latent_to_rgb,
        ),
        lane_counts=LaneCounts(denoiser, lane_counts),
        offloadable=parking,
    )


def analytic_loader(denoiser: ConstantDenoiser, **options: Any) -> Loader:
    """Return a loader of an analytic model that ignores how much memory to reserve."""
    return lambda reserve_for, previous_plan: analytic_model(denoiser, **options)


def engine_over(denoiser: ConstantDenoiser, **options: Any) -> Engine:
    """Return an engine over an analytic model, driven by hand until it is started."""
    chosen: dict[str, Any] = {"snapshot_every": 5} | options
    return Engine(ModelCache.of(analytic_model(denoiser)), **chosen)
