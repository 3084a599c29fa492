"""A request in the domain's words, and the job that it becomes: one spec for each image.

Doors translate their wire schemas into `GenerationRequest` and `RefinementRequest`. What the
checkpoint allows comes in as `ServiceInfo`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve_app.core.capacity.cost_model import megapixel_steps
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import SEED_RANGE, ImageSpec, Stage
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress.image_input import BaseImage
from serve_app.ingress.lookup import (
    ExtensionChoice,
    extension_warnings,
    find_extensions,
    find_model,
)
from serve_app.ingress.png_metadata import (
    MAX_JOINED_PROMPT_CHARS,
    GenerationRecord,
    embed,
    infotext,
)

LITERAL_GUIDANCE = 9.3  # at temperature 0
DEFAULT_TEMPERATURE = 0.8
DEFAULT_HANDOFF = 0.8
DEFAULT_STRENGTH = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonRequest:
    """What every request for images may say; None leaves a choice to the service."""

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None  # of the first image
    steps: int | None = None
    guidance: float | None = None
    sampler: Sampler | None = None
    image_count: int | None = None
    handoff: float = DEFAULT_HANDOFF
    model: str | None = None  # the name of a base model
    extensions: tuple[ExtensionChoice, ...] = ()
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(CommonRequest):
    """Images from a prompt. `width` and `height`, in pixels, win over `aspect`."""

    aspect: str = "Auto"
    width: int | None = None
    height: int | None = None
    temperature: float = DEFAULT_TEMPERATURE
    refine: bool | None = None  # None: refine where a refiner fits the model


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementRequest(CommonRequest):
    """Images from base images and a prompt. `refiner_only` leaves base out."""

    strength: float = DEFAULT_STRENGTH
    refiner_only: bool = False


@dataclass(frozen=True, slots=True)
class JobImage:
    """One image of a job. `prompt` is the field as it was sent; the spec's may be longer."""

    spec: ImageSpec
    prompt: str
    base_image: BaseImage | None = None


@dataclass(frozen=True, slots=True)
class RerunFormat:
    """How a door writes the request that makes one image of a job again."""

    route: str
    request: Callable[["GenerationJob", JobImage], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """The images that a request becomes, and what its response says of them."""

    images: tuple[JobImage, ...]
    seed: int  # of the first image; image i has the i-th seed after it
    model: str  # the name that the request chose
    models: Mapping[str, str]  # by stage
    refined: bool
    warnings: tuple[str, ...]
    timeout_s: float | None
    rerun: RerunFormat

    def with_seed(self, seed: int) -> "GenerationJob":
        """Return the same job with another seed."""
        images = [
            replace(image, spec=replace(image.spec, seed=_nth_seed(seed, i)))
            for i, image in enumerate(self.images)
        ]
        return replace(self, seed=seed, images=tuple(images))

    def with_warnings(self, *warnings: str) -> "GenerationJob":
        """Return the same job with more warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def with_metadata(self, image: JobImage, png: bytes, profiles: Mapping[str, str]) -> bytes:
        """Return an image's PNG with its metadata; `profiles` are the numeric ones, by stage."""
        return embed(png, infotext(image.spec, self.models), self.record(image, profiles))

    def record(self, image: JobImage, profiles: Mapping[str, str]) -> GenerationRecord:
        """Return how one of the images can be made again, by which numeric profiles."""
        base = image.base_image.digest if image.base_image else None
        request = self.rerun.request(self, image)
        return GenerationRecord(
            self.rerun.route, request, image.spec.prompt, base, self.models, profiles
        )

    @property
    def cost(self) -> float:
        """The job's share of its caller's rate limit, in megapixel-steps."""
        return sum(megapixel_steps(image.spec) for image in self.images)


def plan_generation(
    request: GenerationRequest, info: ServiceInfo, drawn_seed: int, rerun: RerunFormat
) -> GenerationJob:
    """Return the job of a request for images from a prompt.

    `drawn_seed` is used if the request has no seed. Raises `InvalidRequest` or `ModelNotFound`.
    """
    model = find_model(info, request.model)
    width, height = _size(request, model)
    warnings = list(info.warnings)
    can_refine = info.can_refine(model)
    if request.refine and not can_refine:
        reason = "no refiner is configured"
        if info.refiner:
            reason = f"the refiner does not continue images of {model.name}"
        warnings.append(f"{reason}: base made the whole image")
    guidance = _guidance(request.guidance, model, request.temperature)
    warnings += _negative_prompt_warnings(request, guidance)
    if guidance == model.defaults.guidance and request.temperature != DEFAULT_TEMPERATURE:
        warnings.append(
            f"temperature is ignored: {model.name} is made for a guidance scale of {guidance:g}"
        )
    spec = ImageSpec(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=0,
        width=width,
        height=height,
        steps=request.steps or model.defaults.steps,
        guidance=guidance,
        sampler=request.sampler or model.defaults.sampler,
        handoff=request.handoff if can_refine and request.refine is not False else 1.0,
        model=model.name,
        extensions=find_extensions(request.extensions, model, info),
    )
    images = (JobImage(spec, request.prompt),) * _image_count(request, info)
    return _job(request, images, drawn_seed, info, warnings, rerun)


def plan_refinement(
    request: RefinementRequest,
    base_images: Sequence[BaseImage],
    info: ServiceInfo,
    drawn_seed: int,
    rerun: RerunFormat,
) -> GenerationJob:
    """Return the job of a request for images from base images, at least one for each of them.

    A base image that this service made remembers its prompt, and the request's prompt is added to
    it. Raises `InvalidRequest` or `ModelNotFound`.
    """
    model = check_refinement(request, info)
    extensions = find_extensions(request.extensions, model, info)
    steps = request.steps or model.defaults.steps
    guidance = _guidance(request.guidance, model, DEFAULT_TEMPERATURE)
    handoff = request.handoff
    if not info.can_refine(model):
        handoff = 1.0
    elif request.refiner_only:
        handoff = 0.0
    warnings = [*info.warnings, *_negative_prompt_warnings(request, guidance)]
    if int(steps * request.strength) == 0:
        warnings.append("strength is too small for a whole step: one step is run all the same")
    images = []
    for i in range(max(_image_count(request, info), len(base_images))):
        base = base_images[i % len(base_images)]
        spec = ImageSpec(
            prompt=_joined_prompt(base.prompt, request.prompt),
            negative_prompt=request.negative_prompt,
            seed=0,
            width=base.width,
            height=base.height,
            steps=steps,
            guidance=guidance,
            sampler=request.sampler or model.defaults.sampler,
            strength=request.strength,
            handoff=handoff,
            model=model.name,
            extensions=extensions,
        )
        images.append(JobImage(spec, request.prompt, base))
    job = _job(request, images, drawn_seed, info, warnings, rerun)
    return replace(job, model=info.refiner) if request.refiner_only and info.refiner else job


def check_refinement(request: RefinementRequest, info: ServiceInfo) -> ModelInfo:
    """Return the model of a request whose base images, which cost most, are not read yet.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    model = find_model(info, request.model)
    find_extensions(request.extensions, model, info)
    return model


def temperature_to_guidance(temperature: float) -> float:
    """Return the guidance scale of a temperature; 0 follows the prompt most literally."""
    return round(LITERAL_GUIDANCE - 3 * temperature, 6)


def _size(request: GenerationRequest, model: ModelInfo) -> tuple[int, int]:
    width, height = request.width, request.height
    if width is None and height is None:
        return model.sizes.for_aspect(request.aspect)
    if width is None or height is None:
        missing, given = ("width", "height") if width is None else ("height", "width")
        raise InvalidRequest(missing, f"is required when {given} is given")
    model.sizes.check(width, height)
    return width, height


def _image_count(request: CommonRequest, info: ServiceInfo) -> int:
    return info.default_image_count if request.image_count is None else request.image_count


def _guidance(requested: float | None, model: ModelInfo, temperature: float) -> float:
    """Return the requested scale, else the model's own, else the temperature's."""
    if requested is not None:
        return requested
    default = model.defaults.guidance
    return temperature_to_guidance(temperature) if default is None else default


def _job(
    request: CommonRequest,
    images: Sequence[JobImage],
    drawn_seed: int,
    info: ServiceInfo,
    warnings: Sequence[str],
    rerun: RerunFormat,
) -> GenerationJob:
    spec = images[0].spec
    model = spec.model or info.default_model.name
    models = {str(Stage.BASE): model}
    if info.refiner is not None and spec.handoff < 1:
        models[str(Stage.REFINER)] = info.refiner
    job = GenerationJob(
        images=tuple(images),
        seed=0,
        model=model,
        models=models,
        refined=str(Stage.REFINER) in models,
        warnings=(*warnings, *extension_warnings(images[0].prompt, request.extensions, spec, info)),
        timeout_s=request.timeout_s,
        rerun=rerun,
    )
    return job.with_seed(drawn_seed if request.seed is None else request.seed)


def _joined_prompt(original: str | None, addition: str) -> str:
    joined = f"{original}, {addition}" if original else addition
    return joined if len(joined) <= MAX_JOINED_PROMPT_CHARS else addition


def _nth_seed(seed: int, number: int) -> int:
    return (seed + number) % (SEED_RANGE[1] + 1)


def _negative_prompt_warnings(request: CommonRequest, guidance: float) -> list[str]:
    if guidance <= 1 and request.negative_prompt:
        return ["the negative prompt is ignored: guidance is off at a scale of 1 or below"]
    return []
