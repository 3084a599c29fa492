"""A request in the domain's words, and how it becomes a job: one spec for each image.

Doors translate their wire schemas into these. What a checkpoint allows comes in as `ServiceInfo`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import check_sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage, StepCache
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress.generation_job import GenerationJob, JobImage, RerunFormat
from serve_app.ingress.image_input import LoadedInputs
from serve_app.ingress.lookup import (
    ExtensionChoice,
    extension_warnings,
    find_extensions,
    find_model,
    interval_warnings,
    schedule_warnings,
    vocabulary_warnings,
)
from serve_app.ingress.metadata.record import MAX_JOINED_PROMPT_CHARS
from serve_app.ingress.prompt_loras import read_prompts

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
    guidance_interval: tuple[float, float] | None = None  # low, high, in sigma
    cache: StepCache | None = None
    sampler: Sampler | None = None
    image_count: int | None = None
    refine: bool | None = None  # None: refine where a refiner fits the model
    handoff: float = DEFAULT_HANDOFF
    model: str | None = None  # the name of a base model
    extensions: tuple[ExtensionChoice, ...] = ()
    timeout_s: float | None = None
    resize_mode: ResizeMode = ResizeMode.CROP  # of input images of another ratio
    diffusion_fields: tuple[str, ...] = ()  # as the door names them: those that a cloud ignores


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(CommonRequest):
    """Images from a prompt. `width` and `height`, in pixels, win over `aspect` and `resolution`."""

    aspect: str = "Auto"
    resolution: str = "high"
    width: int | None = None
    height: int | None = None
    temperature: float = DEFAULT_TEMPERATURE

    def size_for(self, model: ModelInfo) -> tuple[int, int]:
        """Return width and height of the images. Raises `InvalidRequest`."""
        width, height = self.width, self.height
        if width is None and height is None:
            return model.sizes.for_aspect(self.aspect, self.resolution)
        if width is None or height is None:
            missing, given = ("width", "height") if width is None else ("height", "width")
            raise InvalidRequest(missing, f"is required when {given} is given")
        model.sizes.check(width, height)
        return width, height


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementRequest(CommonRequest):
    """Images from base images and a prompt.

    `target_size` is what base images are fitted to; None leaves each its own. `refiner_only` leaves
    base out. With `joins_prompts` the prompt is added to that which made a base image.
    """

    strength: float = DEFAULT_STRENGTH
    target_size: tuple[int, int] | None = None
    refiner_only: bool = False
    joins_prompts: bool = False

    def size_for(self, model: ModelInfo) -> tuple[int, int] | None:
        """Return the width and height that every base image is fitted to, if there is one."""
        return self.target_size


def check_names(request: CommonRequest, info: ServiceInfo) -> ModelInfo:
    """Return the model of a request whose files, which cost most, are not read yet.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    model = find_model(info, request.model)
    _sampler(request, model)
    find_extensions(request.extensions, model, info)
    return model


def plan_job(
    request: GenerationRequest | RefinementRequest,
    loaded: Sequence[LoadedInputs],
    info: ServiceInfo,
    drawn_seed: int,
    rerun: RerunFormat,
) -> GenerationJob:
    """Return the job of a request; its images go round its files, at least one for each.

    A refinement has at least one file. `drawn_seed` is used if the request has no seed. Raises
    `InvalidRequest` or `ModelNotFound`.
    """
    model = find_model(info, request.model)
    read = read_prompts(request.prompt, request.negative_prompt, request.extensions, model, info)
    request = replace(
        request,
        prompt=read.prompt,
        negative_prompt=read.negative_prompt,
        extensions=read.extensions,
    )
    if isinstance(request, GenerationRequest):
        job = _plan_generation(request, loaded, info, drawn_seed, rerun)
    else:
        job = _plan_refinement(request, loaded, info, drawn_seed, rerun)
    files_warnings = (warning for files in loaded for warning in files.warnings)
    return job.with_warnings(*read.warnings, *files_warnings)


def _plan_generation(
    request: GenerationRequest,
    loaded: Sequence[LoadedInputs],
    info: ServiceInfo,
    drawn_seed: int,
    rerun: RerunFormat,
) -> GenerationJob:
    model = find_model(info, request.model)
    size = request.size_for(model)
    warnings = _warnings(request, model, info)
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
        width=size[0],
        height=size[1],
        steps=request.steps or model.defaults.steps,
        guidance=guidance,
        guidance_interval=request.guidance_interval or model.defaults.guidance_interval,
        cache=request.cache or model.defaults.cache,
        sampler=_sampler(request, model),
        handoff=request.handoff if _uses_refiner(request, model, info) else 1.0,
        model=model.name,
        extensions=find_extensions(request.extensions, model, info),
    )
    images = job_images(request, loaded or [LoadedInputs(size)], info, lambda files: spec)
    return _job(request, images, drawn_seed, info, warnings, rerun)


def _plan_refinement(
    request: RefinementRequest,
    loaded: Sequence[LoadedInputs],
    info: ServiceInfo,
    drawn_seed: int,
    rerun: RerunFormat,
) -> GenerationJob:
    """Return the job of a request for images from base images, one in each of `loaded`.

    A base image that this service made remembers its prompt, and the request's prompt is added to
    it.
    """
    model = find_model(info, request.model)
    extensions = find_extensions(request.extensions, model, info)
    steps = request.steps or model.defaults.steps
    guidance = _guidance(request.guidance, model, DEFAULT_TEMPERATURE)
    handoff = request.handoff
    if not _uses_refiner(request, model, info):
        handoff = 1.0
    elif request.refiner_only:
        handoff = 0.0
    warnings = _warnings(request, model, info) + _negative_prompt_warnings(request, guidance)
    if int(steps * request.strength) == 0:
        warnings.append("the strength is too small for a whole step: one step is run all the same")

    def spec_of(files: LoadedInputs) -> ImageSpec:
        width, height = files.size
        return ImageSpec(
            prompt=joined_prompt(files.prompt, request),
            negative_prompt=request.negative_prompt,
            seed=0,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            guidance_interval=request.guidance_interval or model.defaults.guidance_interval,
            cache=request.cache or model.defaults.cache,
            sampler=_sampler(request, model),
            strength=request.strength,
            handoff=handoff,
            model=model.name,
            extensions=extensions,
        )

    images = job_images(request, loaded, info, spec_of)
    job = _job(request, images, drawn_seed, info, warnings, rerun)
    return replace(job, model=info.refiner) if request.refiner_only and info.refiner else job


def temperature_to_guidance(temperature: float) -> float:
    """Return the guidance scale of a temperature; 0 follows the prompt most literally."""
    return round(LITERAL_GUIDANCE - 3 * temperature, 6)


def job_images(
    request: CommonRequest,
    loaded: Sequence[LoadedInputs],
    info: ServiceInfo,
    spec_of: Callable[[LoadedInputs], ImageSpec],
) -> list[JobImage]:
    """Return the images of a request, which go round its files, with at least one for each."""
    count = info.default_image_count if request.image_count is None else request.image_count
    return [
        JobImage(spec_of(files), request.prompt, files.inputs, files.digests, request.resize_mode)
        for files in islice(cycle(loaded), max(count, len(loaded)))
    ]


def _sampler(request: CommonRequest, model: ModelInfo) -> Sampler:
    """Return the requested sampler, else the model's own. Raises `InvalidRequest`."""
    sampler = request.sampler or model.defaults.sampler
    check_sampler(model.noise_config, sampler)
    return sampler


def _warnings(request: CommonRequest, model: ModelInfo, info: ServiceInfo) -> list[str]:
    """Return what a caller should know of service and model: a refiner or a sampler it lacks."""
    return [
        *info.warnings,
        *(model.sampler_warnings if request.sampler is None else ()),
        *_refiner_warnings(request, model, info),
    ]


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
    known = find_model(info, model)
    models = {str(Stage.BASE): model}
    if info.refiner is not None and spec.handoff < 1:
        models[str(Stage.REFINER)] = info.refiner
    warnings = (
        *warnings,
        *extension_warnings(request.extensions, spec, info),
        *schedule_warnings(image.spec for image in images),
        *interval_warnings(request.guidance_interval, spec, known),
        *vocabulary_warnings((image.spec.prompt for image in images), known),
    )
    job = GenerationJob(
        images=tuple(images),
        seed=0,
        model=model,
        models=models,
        refined=str(Stage.REFINER) in models,
        warnings=warnings,
        timeout_s=request.timeout_s,
        rerun=rerun,
        has_drawn_seed=request.seed is None,
        names_cache={spec.cache, known.defaults.cache} != {StepCache.OFF},
    )
    return job.with_seed(drawn_seed if request.seed is None else request.seed)


def joined_prompt(original: str | None, request: RefinementRequest) -> str:
    """Return the prompt of a base image with the request's, or that alone, as it wishes."""
    joins = bool(original) and request.joins_prompts
    joined = f"{original}, {request.prompt}" if joins else request.prompt
    return joined if len(joined) <= MAX_JOINED_PROMPT_CHARS else request.prompt


def _uses_refiner(request: CommonRequest, model: ModelInfo, info: ServiceInfo) -> bool:
    return info.can_refine(model) and request.refine is not False


def _refiner_warnings(request: CommonRequest, model: ModelInfo, info: ServiceInfo) -> list[str]:
    if not request.refine or info.can_refine(model):
        return []
    misfit = f"the refiner does not continue images of {model.name}"
    return [f"{misfit if info.refiner else 'no refiner is configured'}: base made the whole image"]


def _negative_prompt_warnings(request: CommonRequest, guidance: float) -> list[str]:
    ignored = "the negative prompt is ignored: guidance is off at a scale of 1 or below"
    return [ignored] if guidance <= 1 and request.negative_prompt else []
