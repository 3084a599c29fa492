"""A valid request to an order: its images, one spec each, with their seeds fixed.

Knows no routes and no conductor; what the checkpoint allows comes in as `ServiceFacts`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve_app.core.capacity.cost_model import megapixel_steps
from serve_app.core.diffusion.spec import SEED_RANGE, ImageSpec, Stage
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress.image_input import BaseImage
from serve_app.ingress.lookup import find_model
from serve_app.ingress.loras import find_loras, lora_warnings
from serve_app.ingress.native.schemas import CommonFields, GenerateRequest, N, RefineRequest
from serve_app.ingress.png_metadata import MAX_PROMPT_CHARS, GenerationRecord

LITERAL_GUIDANCE = 9.3  # at temperature 0
DEFAULT_TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class JobImage:
    """One image of an order. `prompt` is the field as it was sent; the spec's may be longer."""

    spec: ImageSpec
    prompt: str
    base_image: BaseImage | None = None


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """What a request asks to be made, and what to tell of it."""

    route: str
    images: tuple[JobImage, ...]
    seed: int  # of the first image; image i has the i-th after it
    model: str  # the one asked for
    models: Mapping[str, str]  # by stage
    refined: bool
    warnings: tuple[str, ...]
    timeout: float | None  # seconds
    rerun_request: Callable[
        ["GenerationJob", JobImage], dict[str, Any]
    ]  # what makes one image again

    def with_seed(self, seed: int) -> "GenerationJob":
        """The same order with another seed."""
        pieces = [
            replace(piece, spec=replace(piece.spec, seed=_seed_of(seed, i)))
            for i, piece in enumerate(self.images)
        ]
        return replace(self, seed=seed, images=tuple(pieces))

    def record(self, piece: JobImage, profiles: Mapping[str, str]) -> GenerationRecord:
        """How one of its images can be made again."""
        base = piece.base_image.digest if piece.base_image else None
        request = self.rerun_request(self, piece)
        return GenerationRecord(self.route, request, piece.spec.prompt, base, self.models, profiles)

    @property
    def cost(self) -> float:
        """What it counts against its caller's allowance, in megapixel-steps."""
        return sum(megapixel_steps(piece.spec) for piece in self.images)


def plan_generate(request: GenerateRequest, info: ServiceInfo, drawn_seed: int) -> GenerationJob:
    """The order of a /generate. `drawn_seed` counts when the caller gave none.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    _check_common(request, info)
    check_prompt("prompt", request.prompt, info.max_prompt_chars)
    warnings, model = list(info.warnings), find_model(info, request.model)
    if (request.width is None) != (request.height is None):
        lacking = "width" if request.width is None else "height"
        raise InvalidRequest(lacking, "is required when the other side is given")
    if request.width is None or request.height is None:
        width, height = model.sizes.for_aspect(request.aspect_ratio)
    else:
        width, height = request.width, request.height
        model.sizes.check(width, height)
    refines = info.can_refine(model)
    if request.refine and not refines:
        whose = f"the refiner does not continue pictures of {model.name}"
        why = whose if info.refiner else "no refiner is configured"
        warnings.append(f"{why}: base made the whole image")
    guidance = _guidance(request.guidance_scale, model, request.temperature)
    warnings += _ignored(request, guidance)
    if guidance == model.defaults.guidance and request.temperature != DEFAULT_TEMPERATURE:
        warnings.append(
            f"temperature is ignored: {model.name} is made for guidanceScale {guidance:g}"
        )
    handoff = request.handoff if refines and request.refine is not False else 1.0
    spec = ImageSpec(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=0,
        width=width,
        height=height,
        steps=request.steps or model.defaults.steps,
        guidance=guidance,
        sampler=request.sampler or model.defaults.sampler,
        handoff=handoff,
        model=model.name,
        loras=find_loras(request.loras, model, info),
    )
    count = request.image_count or info.default_image_count
    pieces = (JobImage(spec, request.prompt),) * count
    seed = drawn_seed if request.seed is None else request.seed
    return _job("/generate", pieces, seed, info, warnings, request.timeout_seconds)


def plan_refine(
    request: RefineRequest, images: Sequence[BaseImage], info: ServiceInfo, drawn_seed: int
) -> GenerationJob:
    """The order of a /refine: going round the base images, at least one picture for each.

    A picture of our own remembers its prompt, and the refine prompt adds to it.
    Raises `InvalidRequest` or `ModelNotFound`.
    """
    model, steps, guidance = check_refine(request, info)
    loras = find_loras(request.loras, model, info)
    _, prompt = request.words
    named = request.config and request.config.model_path
    handoff = request.handoff
    if not info.can_refine(model):
        handoff = 1.0
    elif named == info.refiner:
        handoff = 0.0
    warnings = [*info.warnings, *_ignored(request, guidance)]
    if int(steps * request.strength) == 0:
        warnings.append("strength is too small for a step: one step is taken all the same")
    asked = info.default_image_count if request.image_count is None else request.image_count
    pieces = []
    for i in range(max(asked, len(images))):
        image = images[i % len(images)]
        spec = ImageSpec(
            prompt=_added(image.prompt, prompt),
            negative_prompt=request.negative_prompt,
            seed=0,
            width=image.width,
            height=image.height,
            steps=steps,
            guidance=guidance,
            sampler=request.sampler or model.defaults.sampler,
            strength=request.strength,
            handoff=handoff,
            model=model.name,
            loras=loras,
        )
        pieces.append(JobImage(spec, prompt, image))
    seed = drawn_seed if request.seed is None else request.seed
    order = _job("/refine", pieces, seed, info, warnings, request.timeout_seconds)
    return replace(order, model=named or model.name)


def check_refine(request: RefineRequest, info: ServiceInfo) -> tuple[ModelInfo, int, float]:
    """Model, steps and guidance of a /refine that is right but for its images: those are dear.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    config = request.config
    name, prompt = request.words
    _check_common(request, info)
    named = config.model_path if config else None
    model = find_model(info, request.model, named)
    if named is not None and named == info.refiner and not model.can_be_refined:
        raise InvalidRequest(
            "config.modelPath", f"is the refiner, which does not continue pictures of {model.name}"
        )
    check_prompt(name, prompt, info.max_prompt_chars)
    find_loras(request.loras, model, info)
    steps = _one_of("steps", request.steps, config.steps if config else None)
    guidance = _one_of(
        "guidanceScale", request.guidance_scale, config.guidance_scale if config else None
    )
    return (
        model,
        model.defaults.steps if steps is None else steps,
        _guidance(guidance, model, DEFAULT_TEMPERATURE),
    )


def temperature_to_guidance(temperature: float) -> float:
    """How strongly the prompt is followed: 0 is the most literal."""
    return round(LITERAL_GUIDANCE - 3 * temperature, 6)


def _guidance(asked: float | None, model: ModelInfo, temperature: float) -> float:
    """What is asked for, else what the model is made for, else what the temperature says."""
    if asked is not None:
        return asked
    made_for = model.defaults.guidance
    return temperature_to_guidance(temperature) if made_for is None else made_for


def check_prompt(path: str, prompt: str | None, max_chars: int) -> None:
    """Returns when the prompt is not too long; raises `InvalidRequest` if it is."""
    if prompt is not None and len(prompt) > max_chars:
        raise InvalidRequest(path, f"must have at most {max_chars} characters, got {len(prompt)}")


def _job(
    route: str,
    pieces: Sequence[JobImage],
    seed: int,
    facts: ServiceInfo,
    warnings: Sequence[str],
    timeout: float | None,
) -> GenerationJob:
    model = pieces[0].spec.model or facts.default_model.name
    refined = facts.refiner is not None and pieces[0].spec.handoff < 1
    models = {str(Stage.BASE): model}
    if refined and facts.refiner:
        models[str(Stage.REFINER)] = facts.refiner
    warnings = [*warnings, *lora_warnings(pieces[0].prompt, pieces[0].spec, facts)]
    order = GenerationJob(
        route=route,
        images=tuple(pieces),
        seed=seed,
        model=model,
        models=models,
        refined=refined,
        warnings=tuple(warnings),
        timeout=timeout,
        rerun_request=_request_of,
    )
    return order.with_seed(seed)


def _request_of(order: GenerationJob, piece: JobImage) -> dict[str, Any]:
    spec = piece.spec
    request: dict[str, Any] = {
        "seed": spec.seed,
        "steps": spec.steps,
        "guidanceScale": spec.guidance,
        "sampler": spec.sampler.value,
        "imageCount": 1,
        "model": order.models[Stage.BASE],
        "handoff": spec.handoff,
    }
    if spec.loras:
        request["loras"] = [{"name": lora.name, "weight": lora.weight} for lora in spec.loras]
    if spec.negative_prompt is not None:
        request["negativePrompt"] = spec.negative_prompt
    if piece.base_image is not None:
        return {"refinePrompt": piece.prompt, "strength": spec.strength, **request}
    size = {"width": spec.width, "height": spec.height}
    return {"prompt": piece.prompt, **size, "refine": order.refined, **request}


def _added(made_of: str | None, refining: str) -> str:
    both = f"{made_of}, {refining}" if made_of else refining
    return both if len(both) <= MAX_PROMPT_CHARS else refining


def _seed_of(seed: int, image: int) -> int:
    return (seed + image) % (SEED_RANGE[1] + 1)


def _ignored(request: CommonFields, guidance: float) -> list[str]:
    if guidance <= 1 and request.negative_prompt:
        return ["negativePrompt is ignored: guidance is off at guidanceScale 1 or below"]
    return []


def _one_of(name: str, top: N | None, nested: N | None) -> N | None:
    if top is not None and nested is not None and top != nested:
        raise InvalidRequest(f"config.{name}", f"is {nested:g}, but {name} says {top:g}")
    return nested if top is None else top


def _check_common(request: CommonFields, facts: ServiceInfo) -> None:
    check_prompt("negativePrompt", request.negative_prompt, facts.max_prompt_chars)
