"""A lone guided image: the engine in strict mode against the stock pipeline, with equal weights.

Both have modules of their own over the same tensors, so that a model of any size is in memory once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import diffusers
import torch

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import open_device
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.twin import twin
from serve_app.runtime.proof_file import ProofFile

_GUIDANCE = 6.9


@dataclass(frozen=True, slots=True)
class ImageTimes:
    """Seconds of paired runs, which alternate."""

    precision: str
    engine: list[float]
    stock: list[float]
    first_seconds: float  # the engine's first image, of one step, with strict mode's proof

    @property
    def ratio(self) -> float:
        """Median of the engine's seconds divided by stock's: below 1 the engine is faster."""
        return median(a / b for a, b in zip(self.engine, self.stock, strict=True))


def measure(
    folder: Path, precision: str, side: int, steps: int, pairs: int, threads: int, images: int
) -> ImageTimes:
    """Return the times of a guided image where `images` have room, base alone, prompt to pixels."""
    checkpoint = inspect(folder, Stage.BASE)
    device = open_device("cpu", precision=precision, xformers=False, cpu_threads=threads)
    modules = load(checkpoint, device)
    stock = _stock(checkpoint, modules)

    with TemporaryDirectory() as proofs:
        pipeline = LocalPipeline(
            [checkpoint],
            device,
            images=images,
            strict=True,
            proofs=ProofFile(Path(proofs) / "proofs.json"),
            load_modules=lambda *_: modules,
        )

        def spec(seed: int, steps: int) -> ImageSpec:
            return ImageSpec(
                prompt=f"image {seed}",
                seed=seed,
                width=side,
                height=side,
                steps=steps,
                guidance=_GUIDANCE,
            )

        def engine(spec: ImageSpec) -> None:
            pipeline.generate([spec])

        times = ImageTimes(precision, [], [], _seconds(engine, spec(0, 1)))
        stock(spec(0, 1))
        for pair in range(pairs):
            sides = [(engine, times.engine), (stock, times.stock)]
            for generate, seconds in sides if pair % 2 else reversed(sides):
                seconds.append(_seconds(generate, spec(pair + 1, steps)))
    return times


def _seconds(generate: Callable[[ImageSpec], None], spec: ImageSpec) -> float:
    start = time.perf_counter()
    generate(spec)
    return time.perf_counter() - start


def _stock(checkpoint: Checkpoint, modules: Modules) -> Callable[[ImageSpec], None]:
    """Return diffusers' own pipeline over the same tensors, in one precision throughout."""
    encoders = modules.text_encoders.networks
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        checkpoint.folder,
        unet=twin(modules.unet),
        vae=twin(modules.vae).to(modules.unet.dtype),
        text_encoder=twin(encoders[0]),
        text_encoder_2=twin(encoders[1]),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def generate(spec: ImageSpec) -> None:
        pipeline(
            spec.prompt,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance,
            generator=torch.Generator("cpu").manual_seed(spec.seed),
            width=spec.width,
            height=spec.height,
        )

    return generate
