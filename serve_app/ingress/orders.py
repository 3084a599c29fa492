"""A valid request to the specs of its images, one per image, each with its seed fixed.

Knows no routes and no conductor; what the checkpoint allows comes in as `ServiceFacts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.core.errors import InvalidRequest, ModelNotFound
from serve_app.core.facts import ServiceFacts
from serve_app.core.spec import SEED, ImageSpec
from serve_app.ingress.images import BaseImage
from serve_app.ingress.schemas import Asked, GenerateRequest, N, RefineRequest

LITERAL_GUIDANCE = 9.3  # at temperature 0
DEFAULT_TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class Order:
    """What a request asks to be made: specs with the base image of each, and what to tell."""

    specs: tuple[tuple[ImageSpec, bytes | None], ...]
    refined: bool
    warnings: tuple[str, ...]


def order_generate(request: GenerateRequest, facts: ServiceFacts, drawn_seed: int) -> Order:
    """The order of a /generate. `drawn_seed` counts when the caller gave none.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    _check_model("model", request.model, facts)
    warnings = list(facts.notices)
    if (request.width is None) != (request.height is None):
        lacking = "width" if request.width is None else "height"
        raise InvalidRequest(lacking, "is required when the other side is given")
    if request.width is None or request.height is None:
        width, height = facts.sizes.for_aspect(request.aspect_ratio)
    else:
        width, height = request.width, request.height
        facts.sizes.check(width, height)
    refined = facts.refiner is not None if request.refine is None else request.refine
    if refined and facts.refiner is None:
        refined = False
        warnings.append("no refiner is configured: base made the whole image")
    guidance = request.guidance_scale
    if guidance is None:
        guidance = guidance_of(request.temperature)
    warnings += _ignored(request, guidance)
    seed = drawn_seed if request.seed is None else request.seed
    specs = [
        ImageSpec(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=_seed_of(seed, i),
            width=width,
            height=height,
            steps=request.steps or facts.default_steps,
            guidance=guidance,
            sampler=request.sampler,
            handoff=request.handoff if refined else 1.0,
        )
        for i in range(request.image_count or facts.image_count)
    ]
    return Order(
        tuple((spec, None) for spec in specs), _is_refined(specs, refined), tuple(warnings)
    )


def order_refine(
    request: RefineRequest, images: Sequence[BaseImage], facts: ServiceFacts, drawn_seed: int
) -> Order:
    """The order of a /refine: going round the base images, at least one picture for each.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    config = request.config
    _check_model("model", request.model, facts)
    _check_model("config.modelPath", config.model_path if config else None, facts)
    steps = _one_of("steps", request.steps, config.steps if config else None)
    guidance = _one_of(
        "guidanceScale", request.guidance_scale, config.guidance_scale if config else None
    )
    steps = facts.default_steps if steps is None else steps
    guidance = guidance_of(DEFAULT_TEMPERATURE) if guidance is None else guidance
    warnings = [*facts.notices, *_ignored(request, guidance)]
    if int(steps * request.strength) == 0:
        warnings.append("strength is too small for a step: one step is taken all the same")
    refined = facts.refiner is not None
    prompt = request.refine_prompt or request.prompt or ""
    seed = drawn_seed if request.seed is None else request.seed
    asked = facts.image_count if request.image_count is None else request.image_count
    specs = []
    for i in range(max(asked, len(images))):
        image = images[i % len(images)]
        spec = ImageSpec(
            prompt=prompt,
            negative_prompt=request.negative_prompt,
            seed=_seed_of(seed, i),
            width=image.width,
            height=image.height,
            steps=steps,
            guidance=guidance,
            sampler=request.sampler,
            strength=request.strength,
            handoff=request.handoff if refined else 1.0,
        )
        specs.append((spec, image.rgb))
    return Order(tuple(specs), _is_refined([spec for spec, _ in specs], refined), tuple(warnings))


def guidance_of(temperature: float) -> float:
    """How strongly the prompt is followed: 0 is the most literal."""
    return round(LITERAL_GUIDANCE - 3 * temperature, 6)


def _seed_of(seed: int, image: int) -> int:
    return (seed + image) % (SEED[1] + 1)


def _is_refined(specs: Sequence[ImageSpec], refined: bool) -> bool:
    return refined and specs[0].handoff < 1


def _ignored(request: Asked, guidance: float) -> list[str]:
    if guidance <= 1 and request.negative_prompt:
        return ["negativePrompt is ignored: guidance is off at guidanceScale 1 or below"]
    return []


def _one_of(name: str, top: N | None, nested: N | None) -> N | None:
    if top is not None and nested is not None and top != nested:
        raise InvalidRequest(f"config.{name}", f"is {nested:g}, but {name} says {top:g}")
    return nested if top is None else top


def _check_model(path: str, name: str | None, facts: ServiceFacts) -> None:
    names = [n for n in (facts.model, facts.refiner) if n]
    legal = names if path == "config.modelPath" else names[:1]
    if name is not None and name not in legal:
        raise ModelNotFound(f"{path} names no model of this service; there is {', '.join(legal)}")
