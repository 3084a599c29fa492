"""The origin of a job's images: all that their bytes depend on besides the request.

A snapshot names the numeric profile of its stage, and a replica refuses another one's. Beside that,
a job that was stopped is made of one origin alone: images that are done and stages that are behind
it would otherwise be of weights that the service no longer has.
"""

import json
from functools import cache
from hashlib import sha256
from importlib.metadata import version

from serve_app import __version__
from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.generation_job import GenerationJob

_LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def origin_digest(info: ServiceInfo, generation: GenerationJob) -> str:
    """Return a digest of the versions, the device and the model files that make a job's images."""
    specs = [image.spec for image in generation.images]
    models = {spec.model or info.models[0].name for spec in specs}
    extensions = {(ref.kind, ref.name) for spec in specs for ref in spec.extensions}
    parts = [
        *(_versions(), info.device, info.precision),
        sorted((model.name, model.weights) for model in info.models if model.name in models),
        (info.refiner, info.refiner_weights),
        sorted((*e.key, e.weights) for e in info.extensions if e.key in extensions),
    ]
    return sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    return {"aura-serve": __version__} | {name: version(name) for name in _LIBRARIES}
