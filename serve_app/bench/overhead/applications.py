"""The service over stages that return one PNG at once, and Ray Serve alone with the same calls."""

from base64 import b64encode
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.config.app_args import DeploymentScale
from serve_app.core.diffusion.sample import Sample, StageSegment, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.deployments.graph import bind_graph, deploy_stage
from serve_app.deployments.ingress_replica import IngressConfig
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.http_ingress import HttpConfig, open_ingress
from serve_app.ingress.server_timing import Stopwatch
from serve_app.testing.instant_stage import InstantStage

_DRAIN_SECONDS = 1.0


def bind_service(png: bytes, side: int, ledger: Path) -> Application:
    """Return the service's own graph over instant stages."""
    info = ServiceInfo(
        models=(ModelInfo("none", side, NoiseConfig.from_scheduler_config({})),),
        refiner="none",
        device="none",
        precision="none",
        default_image_count=1,
    )
    base, refiner = _stages(png)
    http = partial(open_ingress, HttpConfig(info=info, access_policy=AccessPolicy()))
    config = IngressConfig(http, info.models, info.refiner)
    return bind_graph(config, LedgerFile(ledger), base, refiner, DeploymentScale(), _DRAIN_SECONDS)


class RayAlone:
    """The same calls through Ray Serve without the service: the lower bound of any service."""

    def __init__(self, base: Any, refiner: Any, body: bytes, side: int) -> None:
        self._calls = [
            (handle.options(stream=True), segment)
            for handle, segment in (
                (base, StageSegment(Stage.BASE, 24, last=False)),
                (refiner, StageSegment(Stage.REFINER, 30, last=True)),
            )
        ]
        self._body = body
        self._sample = _sample(side)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the ASGI app, as Ray Serve expects of an ingress class."""

        async def make(request: Request) -> Response:
            watch = Stopwatch()
            await request.body()
            watch.lap("validate")  # as the service, which has the body by then
            for handle, segment in self._calls:
                async for _ in handle.advance.remote(self._sample, segment):
                    pass
                watch.lap(segment.stage)
            return Response(self._body, 201, headers={"Server-Timing": watch.header})

        return Starlette(routes=[Route("/", make, methods=["POST"])])


def bind_ray_alone(png: bytes, side: int) -> Application:
    """Return an application that only makes the same calls."""
    deployment: Any = serve.deployment(serve.ingress()(RayAlone))
    body = b'{"images":["' + b64encode(png) + b'"]}'
    options = deployment.options(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
    application: Application = options.bind(*_stages(png), body, side)
    return application


def _stages(png: bytes) -> list[Any]:
    return [
        deploy_stage(
            InstantStage, name, DeploymentScale(), images=4, gpus=0, drain=_DRAIN_SECONDS
        ).bind(png)
        for name in ("BaseGenerator", "Refiner")
    ]


def _sample(side: int) -> Sample[Any]:
    spec = ImageSpec(prompt="a", seed=7, width=side, height=side, steps=30, guidance=6.9)
    schedule = make_schedule(
        NoiseConfig.from_scheduler_config({}), spec.sampler, spec.steps, None, spec.handoff
    )
    return new_sample("ray", spec, schedule, Stage.BASE)
