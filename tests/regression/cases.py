"""The requests whose pictures must never change: HTTP bodies, by name.

They cover both stages, all samplers, image-to-image, LoRAs, several checkpoints, prompt syntax,
long prompts, odd sizes and batches. A name is a file name in `pictures/` and a key of
`record.json`; adding a case needs a run of `python -m tests.regression.record`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SAMPLERS = [
    "euler",
    "euler_karras",
    "euler_exponential",
    "euler_trailing",
    "euler_a",
    "euler_a_trailing",
    "heun",
    "heun_karras",
    "heun_exponential",
    "heun_trailing",
    "ddim",
    "ddim_trailing",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_exponential",
    "dpmpp_2m_trailing",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "dpmpp_2m_sde_exponential",
    "dpmpp_2m_sde_trailing",
    "dpmpp_sde",
    "dpmpp_sde_karras",
    "dpmpp_sde_exponential",
    "unipc",
    "unipc_karras",
    "unipc_exponential",
    "unipc_trailing",
    "lcm",
]
LONG_PROMPT = ", ".join(
    f"{colour} {shape} at the {place}"
    for colour in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "triangle")
    for place in ("top", "bottom", "left", "right")
)[:480]


@dataclass(frozen=True, slots=True)
class Case:
    """A request, its route, and the files in `inputs/` that stand in for its base images."""

    name: str
    route: str
    body: dict[str, Any]
    inputs: tuple[str, ...] = ()
    fast: bool = False  # MODEL_DETERMINISM=fast
    expected_count: int = field(default=1)


def _generate(name: str, *, fast: bool = False, **body: Any) -> Case:
    defaults = {"prompt": "a red circle on a blue background", "seed": 7, "steps": 6}
    count = body.get("imageCount", 1)
    return Case(name, "/generate", defaults | {"imageCount": 1} | body, (), fast, count)


def _refine(name: str, *inputs: str, fast: bool = False, **body: Any) -> Case:
    defaults = {"prompt": "a green square, warmer", "seed": 11, "steps": 6}
    count = max(len(inputs), body.get("imageCount", 1))
    return Case(name, "/refine", defaults | {"imageCount": 1} | body, inputs, fast, count)


def _all() -> Iterator[Case]:
    for seed, sampler in enumerate(SAMPLERS):
        yield _generate(f"refined-{sampler}", seed=seed, sampler=sampler)
        yield _generate(
            f"base-{sampler}", seed=100 + seed, sampler=sampler, steps=5, refine=False, handoff=1
        )
        yield _refine(
            f"image-to-image-{sampler}", "scene.png", seed=200 + seed, sampler=sampler, strength=0.7
        )
    for steps in (1, 2, 3, 11):
        yield _generate(f"steps-{steps}", steps=steps)
    for handoff in (0, 0.3, 0.5, 0.95):
        yield _generate(f"handoff-{handoff}", handoff=handoff, sampler="dpmpp_2m_karras")
    for guidance in (0, 1, 1.5, 20):
        yield _generate(f"guidance-{guidance}", guidanceScale=guidance)
    for temperature in (0, 2):
        yield _generate(f"temperature-{temperature}", temperature=temperature)
    for aspect in ("3:2", "9:16", "21:9"):
        yield _generate(f"aspect-{aspect.replace(':', 'x')}", aspectRatio=aspect, steps=3)
    for width, height in ((104, 152), (200, 72), (136, 136)):
        yield _generate(f"size-{width}x{height}", width=width, height=height, steps=4)
    yield _generate("batch", imageCount=4, steps=4, seed=2**32 - 2)
    yield _generate("negative", negativePrompt="yellow triangle")
    yield _generate("negative-empty", negativePrompt="")
    yield _generate("long-prompt", prompt=LONG_PROMPT)
    yield _generate("emphasis", prompt="a (red:1.4) [circle] on ((blue)) \\(paper\\)")
    yield _generate("break", prompt="a red circle BREAK a blue background", negativePrompt="green")
    yield _generate("spanish", prompt="un círculo rojo sobre fondo azul 🎨")
    for weight in (-1, 0, 0.5, 1.2):
        yield _generate(f"lora-{weight}", loras=[{"name": "ink", "weight": weight}])
    yield _generate("lora-two", loras=[{"name": "oil", "weight": 0.7}, {"name": "ink"}])
    yield _generate("lora-default-weight", loras=[{"name": "oil"}], sampler="euler_a")
    yield _generate("tune", model="tune")
    yield _generate("tune-lora", model="tune", loras=[{"name": "ink", "weight": 1.2}])
    for strength in (0.05, 0.15, 0.3, 1):
        yield _refine(f"strength-{strength}", "scene.png", strength=strength)
    yield _refine("refiner-alone", "scene.png", handoff=0, strength=0.5)
    yield _refine("refine-base-alone", "scene.png", handoff=1, strength=0.5)
    yield _refine("refine-remembered-prompt", "remembered.png", strength=0.4)
    yield _refine("refine-wide", "wide.png", strength=0.4, negativePrompt="red")
    yield _refine("refine-two", "scene.png", "wide.png", imageCount=3, strength=0.4)
    yield _refine("refine-lora", "scene.png", loras=[{"name": "ink", "weight": 1.2}])
    yield _refine("refine-config", "scene.png", steps=None, config={"steps": 7, "guidanceScale": 3})
    yield _generate("fast", fast=True)
    yield _generate("fast-unguided", fast=True, guidanceScale=1, sampler="dpmpp_2m_sde")
    yield _refine("fast-refine", "scene.png", fast=True)


CASES = tuple(_all())
