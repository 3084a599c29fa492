"""Two Ray Serve applications around the stock pipeline, as Ray's documentation writes them.

`BatchedModel` collects requests by `@serve.batch`. `TutorialModel` is the tutorial's: one image per
call, a plain method, behind an ingress that encodes the PNG.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.responses import Response

from serve_app.bench.serve.systems.pil_png import to_png
from serve_app.bench.serve.systems.setup import Setup
from serve_app.bench.serve.systems.system import PNG
from serve_app.bench.serve.workload import ImageRequest

if TYPE_CHECKING:
    from serve_app.bench.serve.systems.stock_pipeline import StockPipeline

BATCH_WAIT_S = 0.05
_MAX_REQUESTS = 1000  # that replicas hold open, so that none waits elsewhere

Batch = Callable[[ImageRequest], Awaitable[bytes]]


class BatchedModel:
    """The pipeline behind `@serve.batch`, one queue for each kind of request.

    A call of the pipeline has one step count, one size and one LoRA. Queues by kind fill batches
    with what can share a call, which does better than to sort what one queue has collected, and
    wastes no step, as the largest step count for all would. The call blocks the event loop, as in
    Ray's own examples: what arrives meanwhile makes up the next batches. In a thread, those would
    be closed after `batch_wait_timeout_s`, almost empty.
    """

    def __init__(self, setup: Setup) -> None:
        self._pipeline = _pipeline(setup)
        self._images = setup.images
        self._batches: dict[object, Batch] = {}

    async def generate(self, request: ImageRequest) -> bytes:
        """Return an image as PNG."""
        batch = self._batches.get(request.kind)
        if batch is None:
            batch = self._batches[request.kind] = self._new_batch()
        return await batch(request)

    def _new_batch(self) -> Batch:
        @serve.batch(max_batch_size=self._images, batch_wait_timeout_s=BATCH_WAIT_S)
        async def generate(requests: list[ImageRequest]) -> list[bytes]:
            return [to_png(image) for image in self._pipeline.images(requests)]

        return generate


class BatchedIngress:
    """The HTTP side of `BatchedModel`."""

    def __init__(self, model: "DeploymentHandle[Any]") -> None:
        self._model = model

    def __serve_build_asgi_app__(self) -> Any:
        """Return the ASGI app."""
        app = FastAPI()

        @app.post("/generate")
        async def generate(body: dict[str, Any]) -> Response:
            png = await self._model.generate.remote(ImageRequest(**body))
            return Response(png, media_type=PNG)

        return app


class TutorialModel:
    """The pipeline as in the tutorial: a plain method, which Serve runs in threads."""

    def __init__(self, setup: Setup) -> None:
        self._pipeline = _pipeline(setup)

    def generate(self, request: ImageRequest) -> Any:
        """Return an image (PIL)."""
        (image,) = self._pipeline.images([request])
        return image


class TutorialIngress:
    """The HTTP side of `TutorialModel`."""

    def __init__(self, model: "DeploymentHandle[Any]") -> None:
        self._model = model

    def __serve_build_asgi_app__(self) -> Any:
        """Return the ASGI app."""
        app = FastAPI()

        @app.post("/generate")
        async def generate(body: dict[str, Any]) -> Response:
            image = await self._model.generate.remote(ImageRequest(**body))
            return Response(to_png(image), media_type=PNG)

        return app


def bind_batched(setup: Setup) -> Application:
    """Return the application with `@serve.batch`."""
    model = _deploy(BatchedModel, max_ongoing_requests=_MAX_REQUESTS).bind(setup)
    ingress = _deploy(serve.ingress()(BatchedIngress), max_ongoing_requests=_MAX_REQUESTS)
    return _bound(ingress, model)


def bind_tutorial(setup: Setup) -> Application:
    """Return the tutorial's application, which leaves `max_ongoing_requests` at its default."""
    return _bound(
        _deploy(serve.ingress()(TutorialIngress), max_ongoing_requests=_MAX_REQUESTS),
        _deploy(TutorialModel).bind(setup),
    )


def _bound(ingress: Any, model: Any) -> Application:
    application: Application = ingress.bind(model)
    return application


def _deploy(kind: Any, **options: Any) -> Any:
    deployment: Any = serve.deployment(kind)
    return deployment.options(ray_actor_options={"num_cpus": 0.1}, **options)


def _pipeline(setup: Setup) -> "StockPipeline":
    from serve_app.bench.serve.systems.stock_pipeline import StockPipeline  # torch, not at the door

    loras = {name: str(file) for name, file in setup.loras.items()}
    return StockPipeline(str(setup.checkpoint), setup.threads, loras)
