"""The A1111 request that makes one image of a job again, as the image's metadata has it."""

from typing import Any

from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.diffusion.spec import Stage
from serve_app.ingress.a1111.schemas import IMG2IMG, TXT2IMG
from serve_app.ingress.generation_job import GenerationJob, JobImage, RerunFormat

_RESIZE_MODES = {ResizeMode.STRETCH: 0, ResizeMode.CROP: 1, ResizeMode.PAD: 2}


def rerun_request(job: GenerationJob, image: JobImage) -> dict[str, Any]:
    """Return the fields of a request that makes one image of a job again.

    LoRAs stand in the prompt, as everywhere in the web UI.
    """
    spec = image.spec
    if job.cloud is not None:
        size = {"width": spec.width, "height": spec.height} if spec.strength is None else {}
        override = {"sd_model_checkpoint": spec.model}
        return {"prompt": image.prompt, **size, "override_settings": override}
    tags = [f"<{ref.kind}:{ref.name}:{ref.weight!r}>" for ref in spec.extensions]
    request: dict[str, Any] = {
        "prompt": " ".join([image.prompt, *tags]),
        "negative_prompt": spec.negative_prompt,
        "seed": spec.seed,
        "sampler_name": spec.sampler.definition.a1111_name,
        "scheduler": spec.sampler.spacing.a1111_name,
        "steps": spec.steps,
        "cfg_scale": spec.guidance,
        "width": spec.width,
        "height": spec.height,
        "refiner_checkpoint": job.models.get(Stage.REFINER, "None"),
        "refiner_switch_at": spec.handoff if job.refined else None,
        "denoising_strength": spec.strength,
        "resize_mode": _RESIZE_MODES[image.resize_mode] if spec.strength else None,
        "override_settings": {"sd_model_checkpoint": job.models[Stage.BASE]},
    }
    return {name: value for name, value in request.items() if value is not None}


RERUN_FORMATS = (RerunFormat(TXT2IMG, rerun_request), RerunFormat(IMG2IMG, rerun_request))
