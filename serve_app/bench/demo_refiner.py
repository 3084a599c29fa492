"""Whether the demo's refiner is worth its time: three questions, each with a control.

1. Does it predict the noise of held-out scenes better than base, below t = 200?
2. Are images sharper at equal steps than base's own, and than those encoded and decoded once more?
3. Are degraded images closer to their known originals after it, in PSNR, than before it?
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve_app.bench.demo_quality import (
    DEFAULT_STEPS,
    MAX_BATCH_IMAGES,
    DemoRunner,
    exact,
    through_vae,
)
from serve_app.bench.intervals import bootstrap_interval
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.demo.evaluation import GUIDANCE, HANDOFF, SIDE, STEPS, Question, questions
from serve_app.demo.renderer import OTHER_DEGRADATIONS, TRAINED_DEGRADATIONS, degrade
from serve_app.demo.shape_reader import Pixels, edge_width
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.networks.quiet import diffusers

_TIMES = (10, 40, 80, 120, 160, 199)
_STRENGTHS = (0.2, 0.3)  # at this hand-off: the refiner alone; base first
# The service's defaults; fewer steps, of which the refiner has four; no guidance.
_SETTINGS = ((DEFAULT_STEPS, GUIDANCE), (STEPS, GUIDANCE), (DEFAULT_STEPS, 1.0))
Floats = npt.NDArray[np.float64]
console = Console(highlight=False)


def compare(*, count: int, threads: int) -> None:
    """Print the three answers, on `count` scenes kept out of training."""
    checkpoints = [inspect(demo_folder(stage), stage) for stage in Stage]
    runner = DemoRunner(checkpoints, threads, images=MAX_BATCH_IMAGES)
    exam = questions(count)
    _compare_noise(exam)
    _compare_sharpness(runner, exam)
    _compare_fidelity(runner, exam)


def _compare_noise(exam: Sequence[Question]) -> None:
    base, refiner = (np.array(_noise_errors(stage, exam)) for stage in Stage)
    table = _table(
        f"Error of the predicted noise, {len(exam)} scenes kept out of training",
        "mean squared error, the same noise for both; without guidance",
        ("t", "base", "refiner", "refiner minus base"),
    )
    for column, t in enumerate(_TIMES):
        _add(table, str(t), base[:, column], refiner[:, column], ".4f", exam)
    _add(table, "all", base.mean(axis=1), refiner.mean(axis=1), ".4f", exam)
    console.print(table)


@torch.inference_mode()
def _noise_errors(stage: Stage, exam: Sequence[Question]) -> list[list[float]]:
    """Return the error of each scene at each timestep; the noise is the same for both stages."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        demo_folder(stage), dtype=torch.float32, add_watermarker=False
    )
    alphas = pipeline.scheduler.alphas_cumprod[list(_TIMES)][:, None, None, None]
    ids = [SIDE, SIDE, 0, 0, *((SIDE, SIDE) if stage is Stage.BASE else (6.0,))]
    rows = len(_TIMES)
    scenes = list(zip(exam, exact(exam), strict=True))
    errors = []
    for question, image in track(scenes, f"noise, {stage}", console=console, transient=True):
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        generator = torch.Generator().manual_seed(question.seed)
        noise = torch.randn((rows, *latents.shape[1:]), generator=generator)
        embeds, _, pooled, _ = pipeline.encode_prompt(
            question.prompt(), device="cpu", do_classifier_free_guidance=False
        )
        predicted = pipeline.unet(
            alphas.sqrt() * latents + (1 - alphas).sqrt() * noise,
            torch.tensor(_TIMES),
            embeds.expand(rows, -1, -1),
            added_cond_kwargs={
                "text_embeds": pooled.expand(rows, -1),
                "time_ids": torch.tensor([ids] * rows),
            },
        ).sample
        errors.append((predicted - noise).square().mean(dim=(1, 2, 3)).tolist())
    return errors


def _compare_sharpness(runner: DemoRunner, exam: Sequence[Question]) -> None:
    exact_width = fmean(filter(None, map(edge_width, exact(exam))))
    table = _table(
        f"Width of the shape's edge, {len(exam)} prompts at equal steps (exact: {exact_width:.2f})",
        "pixels from 10 to 90 % of the difference between background and shape; where both images "
        "have a shape",
        ("control", "without", "refined", "refined minus without"),
    )
    for steps, guidance in _SETTINGS:
        base, refined = (
            runner.generate(
                [
                    replace(q.spec(q.prompt(), handoff=handoff, guidance=guidance), steps=steps)
                    for q in exam
                ],
                label=f"{steps} steps, guidance {guidance:g}, hand-off {handoff:g}",
            )
            for handoff in (1.0, HANDOFF)
        )
        for label, others in (("base alone", base), ("base, VAE again", through_vae(base))):
            widths = zip(map(edge_width, others), map(edge_width, refined), exam, strict=True)
            both = [(a, b, q) for a, b, q in widths if a is not None and b is not None]
            before, after = (np.array([row[side] for row in both]) for side in (0, 1))
            name = f"{label} ({len(both)})\n{steps} steps, guidance {guidance:g}"
            _add(table, name, before, after, ".2f", [q for *_, q in both])
    console.print(table)


def _compare_fidelity(runner: DemoRunner, exam: Sequence[Question]) -> None:
    originals = exact(exam)
    for strength in _STRENGTHS:
        table = _table(
            f"PSNR to the exact image, {len(exam)} of each, strength {strength:g}, hand-off "
            f"{HANDOFF:g}, guidance {GUIDANCE:g}",
            "decibels. Controls: the VAE alone, and base alone in the same steps. Training did not "
            f"show the refiner: {', '.join(OTHER_DEGRADATIONS)}",
            ("degraded", "before", "refined", "refined minus before", "VAE alone", "base alone"),
        )
        for way in TRAINED_DEGRADATIONS + OTHER_DEGRADATIONS:
            degraded = [np.asarray(degrade(Image.fromarray(p), way)) for p in originals]
            inputs = [ImageInputs(image.tobytes()) for image in degraded]
            refined, base_alone = (
                runner.generate(
                    [_refining(q, strength, handoff) for q in exam],
                    inputs,
                    f"{way} {strength:g}",
                )
                for handoff in (HANDOFF, 1.0)
            )
            before, after, *controls = (
                np.array([psnr(p, o) for p, o in zip(images, originals, strict=True)])
                for images in (degraded, refined, through_vae(degraded), base_alone)
            )
            levels = [f"{level.mean():.2f}" for level in controls]
            _add(table, way, before, after, ".2f", exam, *levels)
        console.print(table)


def _refining(question: Question, strength: float, handoff: float) -> ImageSpec:
    return ImageSpec(
        prompt=question.prompt(),
        seed=question.seed,
        width=SIDE,
        height=SIDE,
        steps=STEPS,
        guidance=GUIDANCE,
        strength=strength,
        handoff=handoff,
    )


def psnr(image: Pixels, original: Pixels) -> float:
    """Return the PSNR of two 8-bit images in decibels; 100 for equal ones."""
    error = float(np.square(image.astype(np.float64) - original).mean())
    return min(100.0, float(10 * np.log10(255**2 / error))) if error else 100.0


def _table(title: str, caption: str, headings: Sequence[str]) -> Table:
    table = Table(
        title=title,
        caption=f"{caption}; paired, 95 % bootstrap interval",
        box=box.SIMPLE_HEAD,
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _add(
    table: Table,
    label: str,
    before: Floats,
    after: Floats,
    style: str,
    exam: Sequence[Question],
    *controls: str,
) -> None:
    differences = (after - before).tolist()
    low, high = bootstrap_interval(differences, [q.family for q in exam])
    signed = "+" + style
    table.add_row(
        label,
        format(before.mean(), style),
        format(after.mean(), style),
        f"{fmean(differences):{signed}} \\[{low:{signed}}, {high:{signed}}]",
        *controls,
    )
