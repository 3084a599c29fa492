"""A job's images in the web UI's form, whose `info` is JSON in a string."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from serve_app import __version__
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.service.job_events import ImageMade
from serve_app.ingress.a1111.schemas import ImagesRequest
from serve_app.ingress.containers.png import size_of
from serve_app.ingress.generation_job import GenerationJob
from serve_app.ingress.metadata.record import cloud_infotext, infotext
from serve_app.ingress.responses import ImagesJSONResponse

_NO_SEED = -1  # as the web UI writes a random one


@dataclass(frozen=True, slots=True)
class JobImages:
    """The images of a job that are done: all of them, unless it was interrupted."""

    made: Sequence[ImageMade]
    warnings: Sequence[str]
    created: float  # seconds since the epoch, of the job


def images_response(body: ImagesRequest, job: GenerationJob, images: JobImages) -> Response:
    """Return the response to txt2img or img2img. Call it off the event loop."""
    sends_images = body.send_images is not False
    return ImagesJSONResponse(
        {
            "images": [image.png for image in images.made] if sends_images else [],
            "parameters": _echo(body),
            "info": json.dumps(_info(body, job, images), ensure_ascii=False),
        }
    )


def _echo(body: ImagesRequest) -> dict[str, Any]:
    """Return the request without its files, and without what has no effect: maybe a password."""
    left_out = {"init_images", *(body.model_extra or ())}
    return body.model_dump(mode="json", exclude_unset=True, exclude=left_out)


def _info(body: ImagesRequest, job: GenerationJob, images: JobImages) -> Mapping[str, Any]:
    """Return what the web UI tells of the images, and warnings, which it does not have."""
    if job.cloud is not None:
        return _cloud_info(body, job, images)
    specs = [replace(job.images[made.number].spec, seed=made.seed or 0) for made in images.made]
    first = specs[0]
    return {
        **_common_info(body, job, images, [infotext(spec, job.models) for spec in specs]),
        "negative_prompt": first.negative_prompt or "",
        "all_negative_prompts": [spec.negative_prompt or "" for spec in specs],
        "seed": first.seed,
        "all_seeds": [spec.seed for spec in specs],
        "subseed": first.seed,
        "all_subseeds": [spec.seed for spec in specs],
        "width": first.width,
        "height": first.height,
        "sampler_name": first.sampler.definition.a1111_name,
        "scheduler": first.sampler.spacing.a1111_name,
        "cfg_scale": first.guidance,
        "steps": first.steps,
        "denoising_strength": first.strength,
        "extra_generation_params": _extra(first),
    }


def _cloud_info(body: ImagesRequest, job: GenerationJob, images: JobImages) -> Mapping[str, Any]:
    """Return the same of a cloud's images, which have no seed, no sampler and no steps."""
    prompts = [job.images[made.number].spec.prompt for made in images.made]
    sizes = [size_of(made.png) for made in images.made]
    texts = [
        cloud_infotext(prompt, size, job.model) for prompt, size in zip(prompts, sizes, strict=True)
    ]
    none = [_NO_SEED] * len(prompts)
    return {
        **_common_info(body, job, images, texts),
        "negative_prompt": "",
        "all_negative_prompts": [""] * len(prompts),
        "seed": _NO_SEED,
        "all_seeds": none,
        "subseed": _NO_SEED,
        "all_subseeds": none,
        "width": sizes[0][0],
        "height": sizes[0][1],
        "sampler_name": "",
        "scheduler": "",
        "cfg_scale": 0,
        "steps": 0,
        "denoising_strength": None,
        "extra_generation_params": {},
    }


def _common_info(
    body: ImagesRequest, job: GenerationJob, images: JobImages, texts: Sequence[str]
) -> dict[str, Any]:
    prompts = [job.images[made.number].spec.prompt for made in images.made]
    return {
        "prompt": prompts[0],
        "all_prompts": prompts,
        "subseed_strength": 0,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.models["base"],
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "index_of_first_image": 0,
        "infotexts": list(texts),
        "styles": [],
        "job_timestamp": datetime.fromtimestamp(images.created, UTC).strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"aura-serve {__version__}",
        "warnings": list(images.warnings),
    }


def _extra(spec: ImageSpec) -> dict[str, str]:
    return {"Schedule type": spec.sampler.spacing.a1111_name}
