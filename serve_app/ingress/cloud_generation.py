"""A request that names a cloud's model, as a job.

Such a model takes a prompt, an input image and an aspect ratio. What else a request says is listed
in a warning rather than refused, so that clients need not know which model they talk to.
"""

from collections.abc import Sequence
from dataclasses import replace

from serve_app.core.diffusion.prompt_marks import read_tags
from serve_app.core.diffusion.sizes import nearest_aspect
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.generation import (
    DEFAULT_STRENGTH,
    DEFAULT_TEMPERATURE,
    GenerationRequest,
    RefinementRequest,
    job_images,
    joined_prompt,
    temperature_to_guidance,
)
from serve_app.ingress.generation_job import GenerationJob, RerunFormat
from serve_app.ingress.image_input import LoadedInputs
from serve_app.ingress.lookup import find_model

_AUTO = "Auto"


def plan_cloud_job(
    request: GenerationRequest | RefinementRequest,
    loaded: Sequence[LoadedInputs],
    info: ServiceInfo,
    drawn_seed: int,
    rerun: RerunFormat,
) -> GenerationJob:
    """Return the job of a request for a cloud's model; its images go round its files.

    For the limits an image counts as one of its model's size and steps here. Raises
    `InvalidRequest` or `ModelNotFound`.
    """
    model = find_model(info, request.model)
    assert model.cloud is not None
    prompt, tags = read_tags(request.prompt)
    if not prompt:
        raise InvalidRequest("prompt", "must have words besides the LoRAs that it names")
    request = replace(request, prompt=prompt)
    base = request if isinstance(request, RefinementRequest) else None
    size = request.size_for(model)
    aspect = _aspect(request, size)

    def spec_of(files: LoadedInputs) -> ImageSpec:
        width, height = files.size
        return ImageSpec(
            prompt=prompt if base is None else joined_prompt(files.prompt, base),
            seed=0,
            width=width,
            height=height,
            steps=model.defaults.steps,
            guidance=temperature_to_guidance(DEFAULT_TEMPERATURE),
            strength=None if base is None else DEFAULT_STRENGTH,
            model=model.name,
            aspect=aspect,
        )

    files = loaded or [LoadedInputs(size or model.sizes.for_aspect(_AUTO))]
    name = model.cloud.name
    job = GenerationJob(
        images=tuple(job_images(request, files, info, spec_of)),
        seed=0,
        model=name,
        models={str(Stage.BASE): name},
        refined=False,
        warnings=(
            info.cloud_notice,
            *_ignored(request, model.name, has_tags=bool(tags)),
            *_size_warnings(request, aspect),
            *(warning for image in loaded for warning in image.warnings),
        ),
        timeout_s=request.timeout_s,
        rerun=rerun,
        has_drawn_seed=True,
        cloud=model.cloud.provider,
    )
    return job.with_seed(drawn_seed)


def with_current_model(job: GenerationJob, info: ServiceInfo) -> GenerationJob:
    """Return a job of before a start as it will be made now, when its cloud may have another model.

    A job of this service's models, and of a cloud that it no longer has, is returned as it is.
    """
    model = info.find_model(job.images[0].spec.model or "")
    if job.cloud is None or model is None or model.cloud is None:
        return job
    warnings = (info.cloud_notice, *job.warnings[1:])  # the first is the notice of before
    return replace(job.with_cloud_model(model.cloud.name), warnings=warnings)


def _aspect(
    request: GenerationRequest | RefinementRequest, size: tuple[int, int] | None
) -> str | None:
    """Return the ratio that a request names, or that of its size; None leaves it to the model."""
    if isinstance(request, GenerationRequest) and request.width is None:
        return None if request.aspect == _AUTO else request.aspect
    return None if size is None else nearest_aspect(*size)


def _ignored(
    request: GenerationRequest | RefinementRequest, name: str, *, has_tags: bool
) -> list[str]:
    """Return a warning that lists what a request says and the model can't follow."""
    fields = [*request.diffusion_fields, *(["LoRAs in the prompt"] if has_tags else [])]
    if not fields:
        return []
    return [f"ignored, since {name} has no such setting: {', '.join(fields)}"]


def _size_warnings(request: GenerationRequest | RefinementRequest, aspect: str | None) -> list[str]:
    has_size = (
        request.width is not None
        if isinstance(request, GenerationRequest)
        else request.target_size is not None
    )
    return [f"of the size the aspect ratio counts alone, here {aspect}"] if has_size else []
