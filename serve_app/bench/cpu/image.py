"""A lone guided image: the engine in strict mode against the stock pipeline, with equal weights.

Each makes its image in a process of its own, since the engine lays weights out anew: together they
would need the memory of two models.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import diffusers
import torch

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.process import allocator
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.networks.loading import load
from serve_app.runtime.proof_file import ProofFile

_GUIDANCE = 6.9

Run = Callable[[ImageSpec], object]


@dataclass(frozen=True, slots=True)
class Setup:
    """What is made, and how the engine is set up."""

    folder: Path  # of the checkpoint
    precision: str  # a key of DTYPES
    side: int  # pixels
    steps: int
    threads: int
    images: int  # that have room in the engine
    proofs: Path  # the file in which the engine remembers strict mode's proof


@dataclass(frozen=True, slots=True)
class ImageSeconds:
    """Seconds of two images of a process, from prompt to pixels."""

    first: float  # of one step; the engine's with strict mode's proof, if that is new
    image: float


@dataclass(frozen=True, slots=True)
class ImageTimes:
    """Seconds of paired runs, which alternate."""

    precision: str
    engine: list[float]
    stock: list[float]
    first_seconds: float  # the engine's very first image

    @property
    def ratio(self) -> float:
        """Median of the engine's seconds divided by stock's: below 1 the engine is faster."""
        return median(a / b for a, b in zip(self.engine, self.stock, strict=True))


def measure_engine(setup: Setup, seed: int) -> ImageSeconds:
    """Return the engine's times of a guided image by base alone."""
    allocator.keep_large_blocks()  # as in the service
    checkpoint, device = _open(setup)
    pipeline = LocalPipeline(
        [checkpoint], device, images=setup.images, strict=True, proofs=ProofFile(setup.proofs)
    )
    return _measure(lambda spec: pipeline.generate([spec]), setup, seed)


def measure_stock(setup: Setup, seed: int) -> ImageSeconds:
    """Return the times of diffusers' own pipeline, in one precision throughout."""
    checkpoint, device = _open(setup)
    modules = load(checkpoint, device)
    encoders = modules.text_encoders.networks
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        checkpoint.folder,
        unet=modules.unet,
        vae=modules.vae.to(device.dtype),
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return _measure(partial(_run_stock, pipeline), setup, seed)


def _run_stock(pipeline: Callable[..., object], spec: ImageSpec) -> None:
    pipeline(
        spec.prompt,
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance,
        generator=torch.Generator("cpu").manual_seed(spec.seed),
        width=spec.width,
        height=spec.height,
    )


def _open(setup: Setup) -> tuple[Checkpoint, Device]:
    device = open_device(
        "cpu", precision=setup.precision, xformers=False, cpu_threads=setup.threads
    )
    return inspect(setup.folder, Stage.BASE), device


def _measure(run: Run, setup: Setup, seed: int) -> ImageSeconds:
    seconds = []
    for steps in (1, setup.steps):
        spec = ImageSpec(
            prompt=f"image {seed} of {steps} steps",  # embeddings of a prompt are remembered
            seed=seed,
            width=setup.side,
            height=setup.side,
            steps=steps,
            guidance=_GUIDANCE,
        )
        start = time.perf_counter()
        run(spec)
        seconds.append(time.perf_counter() - start)
    return ImageSeconds(*seconds)
