"""How a request becomes a job: by the rules of diffusion, or by those of a cloud's model.

Both make the same `GenerationJob`, so that nothing after this asks which it was.
"""

from collections.abc import Sequence

from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress import generation
from serve_app.ingress.cloud_generation import plan_cloud_job
from serve_app.ingress.generation import GenerationRequest, RefinementRequest
from serve_app.ingress.generation_job import GenerationJob, RerunFormat
from serve_app.ingress.image_input import LoadedInputs
from serve_app.ingress.lookup import find_model


def check_names(request: GenerationRequest | RefinementRequest, info: ServiceInfo) -> ModelInfo:
    """Return the model of a request whose files are not read yet.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    model = find_model(info, request.model)
    return generation.check_names(request, info) if model.cloud is None else model


def plan_job(
    request: GenerationRequest | RefinementRequest,
    loaded: Sequence[LoadedInputs],
    info: ServiceInfo,
    drawn_seed: int,
    rerun: RerunFormat,
) -> GenerationJob:
    """Return the job of a request; see `generation.plan_job`.

    Raises `InvalidRequest` or `ModelNotFound`.
    """
    model = find_model(info, request.model)
    if model.cloud is None:
        return generation.plan_job(request, loaded, info, drawn_seed, rerun)
    return plan_cloud_job(request, loaded, info, drawn_seed, rerun)
