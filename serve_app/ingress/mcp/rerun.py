"""The tool call that makes one image of a job again, as the image's metadata has it."""

from typing import Any

from serve_app.core.diffusion.spec import Stage
from serve_app.ingress.generation_job import GenerationJob, JobImage, RerunFormat

PATH = "/mcp"
GENERATE = "generate"
REFINE = "refine"


def rerun_request(job: GenerationJob, image: JobImage) -> dict[str, Any]:
    """Return the JSON-RPC request that makes one image of a job again; its file is left out."""
    tool = GENERATE if image.spec.strength is None else REFINE
    params = {"name": tool, "arguments": _arguments(job, image)}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


def _arguments(job: GenerationJob, image: JobImage) -> dict[str, Any]:
    spec = image.spec
    if job.cloud is not None:
        aspect = {"aspect_ratio": spec.aspect} if spec.aspect and spec.strength is None else {}
        return {"prompt": image.prompt, **aspect, "model": spec.model}
    arguments = {
        "prompt": image.prompt,
        "negative_prompt": spec.negative_prompt,
        "seed": spec.seed,
        "steps": spec.steps,
        "guidance_scale": spec.guidance,
        "sampler": spec.sampler.value,
        "model": job.models[Stage.BASE],
        "loras": {ref.name: ref.weight for ref in spec.extensions} or None,
        "strength": spec.strength,
    }
    if spec.strength is None:
        arguments |= {"width": spec.width, "height": spec.height, "refine": job.refined}
    return {name: value for name, value in arguments.items() if value is not None}


RERUN_FORMAT = RerunFormat(PATH, rerun_request)
