"""How well the demo checkpoint draws what it is asked for: marks, languages, guidance, seconds.

Beside the marks stand the judge's on exact pictures that only went through the VAE, the most that
can be had, and those against shuffled prompts, which chance gets right.
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

TOGETHER = 8  # pictures that step together
_ALONE = 9  # pictures timed one by one
_OTHER_SAMPLERS = (Sampler.EULER_A, Sampler.DPMPP_2M, Sampler.DPMPP_2M_KARRAS)
USUAL_STEPS = 30  # what the service takes when nobody says
Rights = tuple[list[bool], list[Hashable]]
FACTS = ("background", "colour", "place", "kind", "large kind", "size", "alone", "all")
console = Console(highlight=False)


class DemoRunner:
    """A `Solo` with a progress bar."""

    def __init__(
        self, checkpoints: Sequence[Checkpoint], threads: int, *, images: int, strict: bool = False
    ) -> None:
        device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=threads)
        self._solo = LocalPipeline(checkpoints, device, images=images, strict=strict)

    def generate(
        self,
        specs: Sequence[ImageSpec],
        sources: Sequence[bytes] | None = None,
        label: str = "drawing",
    ) -> list[Pixels]:
        """The pictures of the specs."""
        steps = sum(spec.nfe for spec in specs)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(label, total=steps)
            return self._solo.generate(specs, sources, lambda n: progress.update(task, completed=n))


def evaluate(*, count: int, threads: int) -> None:
    """Prints the marks of `count` scenes that training never saw, in English and in Spanish, and,
    on a third of them, what everything else does to them."""
    checkpoints = [inspect(demo_folder(stage), stage) for stage in Stage]
    hand = DemoRunner(checkpoints, threads, images=TOGETHER)
    asked = questions(count)
    few = asked[: max(2, count // 3)]
    english = hand.generate([q.spec(q.prompt()) for q in asked], label="English")
    spanish = hand.generate([q.spec(q.prompt(Language.SPANISH)) for q in asked], label="Spanish")
    refined = hand.generate([q.spec(q.prompt(), handoff=HANDOFF) for q in asked], label="refined")
    others = [score(p, scene) for p, scene in zip(english, shuffled(asked), strict=True)]
    marks = {
        "exact, through the VAE": marked(through_vae(exact(asked)), asked),
        "English": marked(english, asked),
        "Spanish": marked(spanish, asked),
        "English, refined": marked(refined, asked),
        "English, prompts shuffled": others,
    }
    title = (
        f"{count} scenes of one shape, kept out of training: {STEPS} Euler steps, guidance "
        f"{GUIDANCE:g}, hand-off {HANDOFF:g} where refined"
    )
    console.print(_table(title, marks, asked))
    _tell_languages(marks["English"], marks["Spanish"], asked)
    console.print(_table("The same, asked for otherwise", _otherwise(hand, few), few))
    _tell_pairs(hand, pairs(len(few)))
    _tell_guidance(hand, few, english[: len(few)])
    _tell_avoidance(hand, few)
    _tell_seconds(checkpoints, threads, questions(_ALONE + 1, first=count))


def exact(asked: Sequence[Question]) -> list[Pixels]:
    """The exact picture of each question."""
    return [
        np.asarray(paint(q.scene, random.Random(f"exact {q.number}"), (SIDE, SIDE))) for q in asked
    ]


@torch.inference_mode()
def through_vae(pictures: Sequence[Pixels]) -> list[Pixels]:
    """Each picture as latents and back."""
    vae = diffusers.AutoencoderKL.from_pretrained(
        demo_folder(Stage.BASE) / "vae", dtype=torch.float32
    )
    pixels = SdxlVae(vae.eval(), torch.device("cpu"))
    middle = torch.zeros(4, SIDE // 8, SIDE // 8)
    return [pixels.decode(pixels.encode(picture, middle)) for picture in pictures]


def marked(pictures: Sequence[Pixels], asked: Sequence[Question]) -> list[Scores]:
    """The marks of each question's picture."""
    return [score(picture, q.scene) for picture, q in zip(pictures, asked, strict=True)]


def right(rows: Sequence[Scores], fact: str, asked: Sequence[Question]) -> Rights:
    """Of each picture whether a fact is as asked for, and its family."""
    kept = [
        (row, q) for row, q in zip(rows, asked, strict=True) if fact != "large kind" or row.large
    ]
    name = fact.removeprefix("large ")
    return [bool(getattr(row, name)) for row, _ in kept], [q.family for _, q in kept]


def _otherwise(hand: DemoRunner, few: Sequence[Question]) -> dict[str, list[Scores]]:
    """Marks of other sizes, samplers and step counts, all refined."""

    def drawn(label: str, change: Callable[[int, ImageSpec], ImageSpec]) -> list[Scores]:
        specs = [q.spec(q.prompt(), handoff=HANDOFF) for q in few]
        return marked(hand.generate([change(*one) for one in enumerate(specs)], label=label), few)

    rules, names = SizeRules(SIDE), [name for name in ASPECTS if name not in ("Auto", "1:1")]

    def shaped(number: int, spec: ImageSpec) -> ImageSpec:
        width, height = rules.for_aspect(names[number % len(names)])
        return replace(spec, width=width, height=height)

    def sampled(sampler: Sampler) -> Callable[[int, ImageSpec], ImageSpec]:
        return lambda _, spec: replace(spec, sampler=sampler)

    return {
        f"{USUAL_STEPS} steps": drawn("steps", lambda _, s: replace(s, steps=USUAL_STEPS)),
        ", ".join(names): drawn("other shapes", shaped),
        **{s.replace("_", " "): drawn(s, sampled(s)) for s in _OTHER_SAMPLERS},
    }


def _table(title: str, marks: Mapping[str, Sequence[Scores]], asked: Sequence[Question]) -> Table:
    table = Table(
        title=title,
        caption="per cent as asked for, 95 % interval (Wilson, or the bootstrap over kinds of a "
        "colour at a place where that is wider). Chance: background and place 1 in 9 or 10, "
        "colour 1 in 9, kind 1 in 6",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for label in marks:
        table.add_column(label, justify="right")
    for fact in FACTS:
        shares = (share(*right(rows, fact, asked)) for rows in marks.values())
        table.add_row(fact, *(told.replace(" ", "\n", 1) for told in shares))
    return table


def share(rights: Sequence[bool], families: Sequence[Hashable] | None = None) -> str:
    """A share in per cent with its interval."""
    low, high = share_interval(rights, families)
    return f"{100 * fmean(rights):.1f} \\[{100 * low:.0f}, {100 * high:.0f}]"


def _signed(apart: Sequence[float], families: Sequence[Hashable]) -> str:
    low, high = bootstrap_interval(apart, families)
    return f"{fmean(apart):+.1f} \\[{low:+.1f}, {high:+.1f}]"


def _tell_languages(
    english: Sequence[Scores], spanish: Sequence[Scores], asked: Sequence[Question]
) -> None:
    told = []
    for fact in FACTS:
        (en, families), (es, _) = right(english, fact, asked), right(spanish, fact, asked)
        apart = [100.0 * (b - a) for a, b in zip(en, es, strict=True)]
        told.append(f"{fact} {_signed(apart, families)}")
    console.print(f"Spanish less English, points, {len(asked)} pairs: {', '.join(told)}")


def _tell_pairs(hand: DemoRunner, asked: Sequence[Question]) -> None:
    for label, handoff in (("by base alone", 1.0), ("refined", HANDOFF)):
        pictures = hand.generate(
            [q.spec(q.prompt(), handoff=handoff) for q in asked], label="pairs"
        )
        rights = [score_pair(p, q.scene) for p, q in zip(pictures, asked, strict=True)]
        console.print(
            f"Two shapes, both colours, kinds and the background, {label}: {share(rights)}"
        )


def _tell_guidance(hand: DemoRunner, few: Sequence[Question], guided: Sequence[Pixels]) -> None:
    families = [q.family for q in few]
    more = [one.all for one in marked(guided, few)]
    for scale in (1.0, 3.0):
        pictures = hand.generate(
            [q.spec(q.prompt(), guidance=scale) for q in few], label="guidance"
        )
        less = [one.all for one in marked(pictures, few)]
        apart = [100.0 * (b - a) for a, b in zip(less, more, strict=True)]
        farther = [contrast(b) - contrast(a) for a, b in zip(pictures, guided, strict=True)]
        console.print(
            f"Guidance {GUIDANCE:g} less {scale:g}: all as asked for {_signed(apart, families)} "
            f"points, contrast of shape and background {_signed(farther, families)} levels"
        )


def _tell_avoidance(hand: DemoRunner, few: Sequence[Question]) -> None:
    own, other = zip(*(one.kept for one in avoid(few, hand.generate)), strict=True)
    console.print(
        f"Of {len(own)} shapes whose colour the prompt leaves open, per cent that keep it: "
        f"{share(own)} when the negative prompt names it, {share(other)} when it names another"
    )


def _tell_seconds(
    checkpoints: Sequence[Checkpoint], threads: int, asked: Sequence[Question]
) -> None:
    """Prompt to pixels of one picture alone; the first one warms up."""
    ways = {
        f"base alone, {STEPS} steps": (DemoRunner(checkpoints, threads, images=1), STEPS, 1.0),
        f"as the service does when nobody says: refined, {USUAL_STEPS} steps, strict, in lanes "
        "for two": (DemoRunner(checkpoints, threads, images=2, strict=True), USUAL_STEPS, HANDOFF),
    }
    for label, (hand, steps, handoff) in ways.items():
        seconds = []
        for question in asked:
            spec = replace(question.spec(question.prompt(), handoff=handoff), steps=steps)
            began = time.perf_counter()
            hand.generate([spec])
            seconds.append(time.perf_counter() - began)
        console.print(
            f"One picture on {threads} CPU thread(s), {label}: median {median(seconds[1:]):.2f} s "
            f"\\[{min(seconds[1:]):.2f} to {max(seconds[1:]):.2f}]"
        )
