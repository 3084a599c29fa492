"""Whether the demo's refiner earns its place: three questions, each against the control it needs.

1. Does it predict the noise of scenes kept out of training better than the base, below t = 200?
2. Are pictures sharper at equal steps than base's own, and than those once more through the VAE?
3. Are spoiled pictures nearer to their known originals after it, in PSNR, than before it?
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

from serve_app.bench.demo_quality import TOGETHER, USUAL_STEPS, DemoRunner, exact, through_vae
from serve_app.bench.intervals import bootstrap_interval
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.demo.evaluation import GUIDANCE, HANDOFF, SIDE, STEPS, Question, questions
from serve_app.demo.renderer import TAUGHT, UNTAUGHT, degrade
from serve_app.demo.shape_reader import Pixels, edge_width
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.networks.quiet import diffusers

_TIMES = (10, 40, 80, 120, 160, 199)
_STRENGTHS = (0.2, 0.3)  # the refiner alone at this hand-off; base for a stretch before it
# What the service does when nobody says; fewer steps, of which the refiner has four; no guidance.
_WAYS = ((USUAL_STEPS, GUIDANCE), (STEPS, GUIDANCE), (USUAL_STEPS, 1.0))
Numbers = npt.NDArray[np.float64]
console = Console(highlight=False)


def compare(*, count: int, threads: int) -> None:
    """Prints the three answers, on `count` scenes kept out of training."""
    checkpoints = [inspect(demo_folder(stage), stage) for stage in Stage]
    hand = DemoRunner(checkpoints, threads, images=TOGETHER)
    asked = questions(count)
    _weigh_noise(asked)
    _weigh_sharpness(hand, asked)
    _weigh_fidelity(hand, asked)


def _weigh_noise(asked: Sequence[Question]) -> None:
    base, refiner = (np.array(_noise_errors(stage, asked)) for stage in Stage)
    table = _table(
        f"Error of the predicted noise, {len(asked)} scenes kept out of training",
        "mean squared error, the same noise for both; without guidance",
        ("t", "base", "refiner", "refiner less base"),
    )
    for column, t in enumerate(_TIMES):
        _add(table, str(t), base[:, column], refiner[:, column], ".4f", asked)
    _add(table, "all", base.mean(axis=1), refiner.mean(axis=1), ".4f", asked)
    console.print(table)


@torch.inference_mode()
def _noise_errors(stage: Stage, asked: Sequence[Question]) -> list[list[float]]:
    """Of each scene, at each time; the noise is the same for both stages."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        demo_folder(stage), dtype=torch.float32, add_watermarker=False
    )
    alphas = pipeline.scheduler.alphas_cumprod[list(_TIMES)][:, None, None, None]
    ids = [SIDE, SIDE, 0, 0, *((SIDE, SIDE) if stage is Stage.BASE else (6.0,))]
    rows = len(_TIMES)
    scenes = list(zip(asked, exact(asked), strict=True))
    found = []
    for question, picture in track(scenes, f"noise, {stage}", console=console, transient=True):
        pixels = torch.tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        draw = torch.Generator().manual_seed(question.seed)
        noise = torch.randn((rows, *latents.shape[1:]), generator=draw)
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
        found.append((predicted - noise).square().mean(dim=(1, 2, 3)).tolist())
    return found


def _weigh_sharpness(hand: DemoRunner, asked: Sequence[Question]) -> None:
    known = fmean(filter(None, map(edge_width, exact(asked))))
    table = _table(
        f"Width of the shape's edge, {len(asked)} prompts at equal steps (exact: {known:.2f})",
        "pixels over which 10 to 90 % of the way from background to shape are climbed; of pictures "
        "in which both have a shape",
        ("against", "without", "refined", "refined less without"),
    )
    for steps, guidance in _WAYS:
        base, refined = (
            hand.generate(
                [
                    replace(q.spec(q.prompt(), handoff=handoff, guidance=guidance), steps=steps)
                    for q in asked
                ],
                label=f"{steps} steps, guidance {guidance:g}, hand-off {handoff:g}",
            )
            for handoff in (1.0, HANDOFF)
        )
        for label, others in (("base alone", base), ("base, VAE again", through_vae(base))):
            widths = zip(map(edge_width, others), map(edge_width, refined), asked, strict=True)
            both = [(a, b, q) for a, b, q in widths if a is not None and b is not None]
            before, after = (np.array([row[side] for row in both]) for side in (0, 1))
            name = f"{label} ({len(both)})\n{steps} steps, guidance {guidance:g}"
            _add(table, name, before, after, ".2f", [q for *_, q in both])
    console.print(table)


def _weigh_fidelity(hand: DemoRunner, asked: Sequence[Question]) -> None:
    originals = exact(asked)
    for strength in _STRENGTHS:
        table = _table(
            f"PSNR to the exact picture, {len(asked)} of each, strength {strength:g}, hand-off "
            f"{HANDOFF:g}, guidance {GUIDANCE:g}",
            "decibels. Beside: through the VAE alone, and by base alone in as many steps. The "
            f"refiner was trained on none that are {', '.join(UNTAUGHT)}",
            ("spoiled", "before", "refined", "refined less before", "VAE alone", "base alone"),
        )
        for way in TAUGHT + UNTAUGHT:
            spoiled = [np.asarray(degrade(Image.fromarray(p), way)) for p in originals]
            sources = [picture.tobytes() for picture in spoiled]
            refined, alone = (
                hand.generate(
                    [_refining(q, strength, handoff) for q in asked], sources, f"{way} {strength:g}"
                )
                for handoff in (HANDOFF, 1.0)
            )
            before, after, *beside = (
                np.array([psnr(p, o) for p, o in zip(pictures, originals, strict=True)])
                for pictures in (spoiled, refined, through_vae(spoiled), alone)
            )
            levels = [f"{level.mean():.2f}" for level in beside]
            _add(table, way, before, after, ".2f", asked, *levels)
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


def psnr(picture: Pixels, original: Pixels) -> float:
    """Decibels between two pictures of 8 bits; equal ones have 100."""
    off = float(np.square(picture.astype(np.float64) - original).mean())
    return min(100.0, float(10 * np.log10(255**2 / off))) if off else 100.0


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
    before: Numbers,
    after: Numbers,
    style: str,
    asked: Sequence[Question],
    *beside: str,
) -> None:
    apart = (after - before).tolist()
    low, high = bootstrap_interval(apart, [q.family for q in asked])
    signed = "+" + style
    table.add_row(
        label,
        format(before.mean(), style),
        format(after.mean(), style),
        f"{fmean(apart):{signed}} \\[{low:{signed}}, {high:{signed}}]",
        *beside,
    )
