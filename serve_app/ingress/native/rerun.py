"""The native request that makes one image of a job again, as the image's metadata has it."""

from functools import partial
from typing import Any

from pydantic.alias_generators import to_camel

from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.diffusion.spec import Stage
from serve_app.ingress.generation_job import GenerationJob, JobImage, RerunFormat
from serve_app.ingress.native.schemas import (
    CommonFields,
    GenerateRequest,
    RefineRequest,
    extension_fields,
)


def rerun_request(
    request_type: type[CommonFields], job: GenerationJob, image: JobImage
) -> dict[str, Any]:
    """Return the fields of a request that makes one image of a job again."""
    spec = image.spec
    if job.cloud is not None:
        if spec.strength is not None:
            return {"refinePrompt": image.prompt, "imageCount": 1, "model": spec.model}
        aspect = {"aspectRatio": spec.aspect} if spec.aspect else {}
        return {"prompt": image.prompt, **aspect, "imageCount": 1, "model": spec.model}
    request: dict[str, Any] = {
        "seed": spec.seed,
        "steps": spec.steps,
        "guidanceScale": spec.guidance,
        "sampler": spec.sampler.value,
        "imageCount": 1,
        "model": job.models[Stage.BASE],
        "handoff": spec.handoff,
    }
    for field, entry in extension_fields(request_type).items():
        refs = [ref for ref in spec.extensions if ref.kind == entry.kind]
        if refs:
            request[to_camel(field)] = [{"name": ref.name, "weight": ref.weight} for ref in refs]
    if spec.guidance_interval is not None:
        request["guidanceInterval"] = list(spec.guidance_interval)
    if job.names_cache:
        request["cache"] = spec.cache.value
    if spec.negative_prompt is not None:
        request["negativePrompt"] = spec.negative_prompt
    if image.resize_mode is not ResizeMode.CROP:
        request["resizeMode"] = image.resize_mode.value
    if spec.strength is not None:
        return {"refinePrompt": image.prompt, "strength": spec.strength, **request}
    size = {"width": spec.width, "height": spec.height}
    return {"prompt": image.prompt, **size, "refine": job.refined, **request}


def rerun_format(route: str, request: type[CommonFields]) -> RerunFormat:
    """Return how requests of a type are written down to be sent again."""
    return RerunFormat(route, partial(rerun_request, request))


GENERATE = rerun_format("/generate", GenerateRequest)
REFINE = rerun_format("/refine", RefineRequest)
RERUN_FORMATS = (GENERATE, REFINE)
