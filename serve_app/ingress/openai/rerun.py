"""The OpenAI request that makes one image of a job again, as the image's metadata has it."""

from typing import Any

from serve_app.core.diffusion.extensions import LORA
from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.ingress.generation_job import GenerationJob, JobImage, RerunFormat
from serve_app.ingress.openai.schemas import EDITS, GENERATIONS, ImagesRequest


def rerun_format(route: str, body: ImagesRequest) -> RerunFormat:
    """Return how a request is written down to be sent again to its route."""
    options: dict[str, str | int | None] = {}
    if body.format != "png":
        options = {
            "output_format": body.format,
            "output_compression": body.output_compression,
        }
    return RerunFormat(route, rerun_request, options)


def rerun_request(job: GenerationJob, image: JobImage) -> dict[str, Any]:
    """Return the fields of a request that makes one image of a job again."""
    spec, mode = image.spec, image.resize_mode
    if job.cloud is not None:
        aspect = {"aspectRatio": spec.aspect} if spec.aspect and spec.strength is None else {}
        named = {"model": spec.model, "prompt": image.prompt, "n": 1, **aspect}
        return named | {
            name: value for name, value in job.rerun.options.items() if value is not None
        }
    loras = [ref for ref in spec.extensions if ref.kind == LORA]
    request = {
        "model": job.model,
        "prompt": image.prompt,
        "n": 1,
        "size": f"{spec.width}x{spec.height}",
        "seed": spec.seed,
        "negative_prompt": spec.negative_prompt,
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "guidanceInterval": spec.guidance_interval and list(spec.guidance_interval),
        "cache": spec.cache.value if job.names_cache else None,
        "sampler": spec.sampler.value,
        "handoff": spec.handoff,
        "strength": spec.strength,
        "loras": [{"name": ref.name, "weight": ref.weight} for ref in loras] or None,
        "resizeMode": None if mode is ResizeMode.CROP else mode.value,
        **job.rerun.options,
    }
    return {name: value for name, value in request.items() if value is not None}


RERUN_FORMATS = tuple(RerunFormat(route, rerun_request) for route in (GENERATIONS, EDITS))
