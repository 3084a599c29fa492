"""The quality of the demo checkpoint: scores of its images by prompt, language and guidance.

There are two bounds beside the scores: exact images that only went through the VAE, which is the
highest possible score, and shuffled prompts, which is chance.
"""

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from serve_app.bench.intervals import bootstrap_interval, share_interval
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.sizes import ASPECTS, SizeRules
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.demo.captions import Language
from serve_app.demo.evaluation import (
    GUIDANCE,
    HANDOFF,
    SIDE,
    STEPS,
    Question,
    Scores,
    avoid,
    pairs,
    questions,
    score,
    score_pair,
    shuffled,
)
from serve_app.demo.renderer import paint
from serve_app.demo.shape_reader import Pixels, contrast
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import open_device
from serve_app.runtime.networks.quiet import diffusers
from serve_app.runtime.networks.vae import SdxlVae

MAX_BATCH_IMAGES = 8
_TIMED_IMAGES = 9  # one by one
_OTHER_SAMPLERS = (Sampler.EULER_A, Sampler.DPMPP_2M, Sampler.DPMPP_2M_KARRAS)
DEFAULT_STEPS = 30  # of the service
Outcomes = tuple[list[bool], list[Hashable]]
FACTS = ("background", "colour", "place", "kind", "large kind", "size", "alone", "all")
console = Console(highlight=False)


class DemoRunner:
    """A `LocalPipeline` with a progress bar."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        threads: int,
        *,
        images: int,
        strict: bool = False,
        quantization: str = "off",
    ) -> None:
        device = open_device(
            "cpu",
            precision="fp32",
            xformers=False,
            cpu_threads=threads,
            quantization=quantization,
        )
        self._pipeline = LocalPipeline(checkpoints, device, images=images, strict=strict)

    def generate(
        self,
        specs: Sequence[ImageSpec],
        inputs: Sequence[ImageInputs] | None = None,
        label: str = "drawing",
    ) -> list[Pixels]:
        """Return the images of the specs."""
        steps = sum(spec.nfe for spec in specs)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(label, total=steps)
            return self._pipeline.generate(
                specs, inputs, lambda n: progress.update(task, completed=n)
            )


def evaluate(*, count: int, threads: int) -> None:
    """Print the scores of `count` scenes that training never saw, in English and in Spanish.

    A third of the scenes also shows the effect of other sizes, samplers, steps and guidance.
    """
    checkpoints = [inspect(demo_folder(stage), stage) for stage in Stage]
    runner = DemoRunner(checkpoints, threads, images=MAX_BATCH_IMAGES)
    exam = questions(count)
    few = exam[: max(2, count // 3)]
    english = runner.generate([q.spec(q.prompt()) for q in exam], label="English")
    spanish = runner.generate([q.spec(q.prompt(Language.SPANISH)) for q in exam], label="Spanish")
    refined = runner.generate([q.spec(q.prompt(), handoff=HANDOFF) for q in exam], label="refined")
    others = [score(p, scene) for p, scene in zip(english, shuffled(exam), strict=True)]
    scores = {
        "exact, through the VAE": score_all(through_vae(exact(exam)), exam),
        "English": score_all(english, exam),
        "Spanish": score_all(spanish, exam),
        "English, refined": score_all(refined, exam),
        "English, prompts shuffled": others,
    }
    title = (
        f"{count} scenes of one shape, kept out of training: {STEPS} Euler steps, guidance "
        f"{GUIDANCE:g}, hand-off {HANDOFF:g} where refined"
    )
    console.print(_table(title, scores, exam))
    _print_languages(scores["English"], scores["Spanish"], exam)
    console.print(_table("The same with other settings", _other_settings(runner, few), few))
    _print_pairs(runner, pairs(len(few)))
    _print_guidance(runner, few, english[: len(few)])
    _print_avoidance(runner, few)
    _print_seconds(checkpoints, threads, questions(_TIMED_IMAGES + 1, first=count))


def exact(exam: Sequence[Question]) -> list[Pixels]:
    """Return the exact image of each question."""
    return [
        np.asarray(paint(q.scene, random.Random(f"exact {q.number}"), (SIDE, SIDE))) for q in exam
    ]


@torch.inference_mode()
def through_vae(images: Sequence[Pixels]) -> list[Pixels]:
    """Return each image encoded to latents and decoded again."""
    vae = diffusers.AutoencoderKL.from_pretrained(
        demo_folder(Stage.BASE) / "vae", dtype=torch.float32
    )
    pixels = SdxlVae(vae.eval(), torch.device("cpu"))
    middle = torch.zeros(4, SIDE // 8, SIDE // 8)
    return [pixels.decode(pixels.encode(image, middle)).image for image in images]


def score_all(images: Sequence[Pixels], exam: Sequence[Question]) -> list[Scores]:
    """Return the scores of each question's image."""
    return [score(image, q.scene) for image, q in zip(images, exam, strict=True)]


def outcomes(rows: Sequence[Scores], fact: str, exam: Sequence[Question]) -> Outcomes:
    """Return for each image whether a fact is as the prompt says, and the question's family."""
    selected = [
        (row, q) for row, q in zip(rows, exam, strict=True) if fact != "large kind" or row.large
    ]
    name = fact.removeprefix("large ")
    return [bool(getattr(row, name)) for row, _ in selected], [q.family for _, q in selected]


def _other_settings(runner: DemoRunner, few: Sequence[Question]) -> dict[str, list[Scores]]:
    """Return the scores with other sizes, samplers and step counts, all refined."""

    def scored(label: str, change: Callable[[int, ImageSpec], ImageSpec]) -> list[Scores]:
        specs = [q.spec(q.prompt(), handoff=HANDOFF) for q in few]
        return score_all(
            runner.generate([change(*pair) for pair in enumerate(specs)], label=label), few
        )

    rules, names = SizeRules(SIDE), [name for name in ASPECTS if name not in ("Auto", "1:1")]

    def shaped(number: int, spec: ImageSpec) -> ImageSpec:
        width, height = rules.for_aspect(names[number % len(names)])
        return replace(spec, width=width, height=height)

    def sampled(sampler: Sampler) -> Callable[[int, ImageSpec], ImageSpec]:
        return lambda _, spec: replace(spec, sampler=sampler)

    return {
        f"{DEFAULT_STEPS} steps": scored("steps", lambda _, s: replace(s, steps=DEFAULT_STEPS)),
        ", ".join(names): scored("other shapes", shaped),
        **{s.replace("_", " "): scored(s, sampled(s)) for s in _OTHER_SAMPLERS},
    }


def _table(title: str, scores: Mapping[str, Sequence[Scores]], exam: Sequence[Question]) -> Table:
    table = Table(
        title=title,
        caption="per cent as the prompt says, 95 % interval (Wilson, or the bootstrap over "
        "families of questions where that is wider). Chance: background and place 1 in 9 or 10, "
        "colour 1 in 9, kind 1 in 6",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for label in scores:
        table.add_column(label, justify="right")
    for fact in FACTS:
        shares = (share(*outcomes(rows, fact, exam)) for rows in scores.values())
        table.add_row(fact, *(text.replace(" ", "\n", 1) for text in shares))
    return table


def share(correct: Sequence[bool], families: Sequence[Hashable] | None = None) -> str:
    """Format a share in per cent with its interval."""
    low, high = share_interval(correct, families)
    return f"{100 * fmean(correct):.1f} \\[{100 * low:.0f}, {100 * high:.0f}]"


def _signed(differences: Sequence[float], families: Sequence[Hashable]) -> str:
    low, high = bootstrap_interval(differences, families)
    return f"{fmean(differences):+.1f} \\[{low:+.1f}, {high:+.1f}]"


def _print_languages(
    english: Sequence[Scores], spanish: Sequence[Scores], exam: Sequence[Question]
) -> None:
    texts = []
    for fact in FACTS:
        (en, families), (es, _) = outcomes(english, fact, exam), outcomes(spanish, fact, exam)
        differences = [100.0 * (b - a) for a, b in zip(en, es, strict=True)]
        texts.append(f"{fact} {_signed(differences, families)}")
    console.print(f"Spanish minus English, points, {len(exam)} pairs: {', '.join(texts)}")


def _print_pairs(runner: DemoRunner, exam: Sequence[Question]) -> None:
    for label, handoff in (("by base alone", 1.0), ("refined", HANDOFF)):
        images = runner.generate([q.spec(q.prompt(), handoff=handoff) for q in exam], label="pairs")
        correct = [score_pair(p, q.scene) for p, q in zip(images, exam, strict=True)]
        console.print(
            f"Two shapes, both colours, kinds and the background, {label}: {share(correct)}"
        )


def _print_guidance(runner: DemoRunner, few: Sequence[Question], guided: Sequence[Pixels]) -> None:
    families = [q.family for q in few]
    with_guidance = [scores.all for scores in score_all(guided, few)]
    for scale in (1.0, 3.0):
        images = runner.generate(
            [q.spec(q.prompt(), guidance=scale) for q in few], label="guidance"
        )
        without = [scores.all for scores in score_all(images, few)]
        differences = [100.0 * (b - a) for a, b in zip(without, with_guidance, strict=True)]
        farther = [contrast(b) - contrast(a) for a, b in zip(images, guided, strict=True)]
        console.print(
            f"Guidance {GUIDANCE:g} minus {scale:g}: all correct {_signed(differences, families)} "
            f"points, contrast of shape and background {_signed(farther, families)} levels"
        )


def _print_avoidance(runner: DemoRunner, few: Sequence[Question]) -> None:
    own, other = zip(*(row.kept for row in avoid(few, runner.generate)), strict=True)
    console.print(
        f"Of {len(own)} shapes whose colour the prompt leaves open, per cent that keep it: "
        f"{share(own)} when the negative prompt names it, {share(other)} when it names another"
    )


def _print_seconds(
    checkpoints: Sequence[Checkpoint], threads: int, exam: Sequence[Question]
) -> None:
    """Print the seconds from prompt to pixels of one image; the first one warms up."""
    setups = {
        f"base alone, {STEPS} steps": (DemoRunner(checkpoints, threads, images=1), STEPS, 1.0),
        f"the service's defaults: refined, {DEFAULT_STEPS} steps, strict, in lanes for two": (
            DemoRunner(checkpoints, threads, images=2, strict=True),
            DEFAULT_STEPS,
            HANDOFF,
        ),
    }
    for label, (runner, steps, handoff) in setups.items():
        seconds = []
        for question in exam:
            spec = replace(question.spec(question.prompt(), handoff=handoff), steps=steps)
            start = time.perf_counter()
            runner.generate([spec])
            seconds.append(time.perf_counter() - start)
        console.print(
            f"One image on {threads} CPU thread(s), {label}: median {median(seconds[1:]):.2f} s "
            f"\\[{min(seconds[1:]):.2f} to {max(seconds[1:]):.2f}]"
        )
