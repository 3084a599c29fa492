"""The systems on Ray Serve: this service in both modes, and two around the stock pipeline."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import yaml
from ray import serve
from ray.serve import Application

from serve_app.app import http
from serve_app.bench.serve.systems.ray_applications import (
    BATCH_WAIT_S,
    bind_batched,
    bind_tutorial,
)
from serve_app.bench.serve.systems.setup import Setup
from serve_app.bench.serve.systems.system import HttpCall, HttpClient, plain_call
from serve_app.bench.serve.workload import GUIDANCE, ImageRequest
from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.deployments.cluster import ray_cluster
from serve_app.deployments.graph import bind_service

_TIMEOUT_HEADER = "x-request-timeout-seconds"  # of Ray Serve: it then cancels the request
STRICT, FAST, SERVE_BATCH = "Aura, strict", "Aura, fast", "@serve.batch"


@dataclass(frozen=True, slots=True)
class RaySystem:
    """An application on the Ray of this process, under a prefix of its own."""

    name: str
    note: str
    port: int
    prefix: str
    bind: Callable[[], Application]
    call: Callable[[ImageRequest, float | None], HttpCall]
    deadline: str = ""

    @contextmanager
    def start(self) -> Iterator[HttpClient]:
        """See `System`."""
        application = self.prefix.strip("/")
        serve.run(self.bind(), name=application, route_prefix=self.prefix)

        def call(request: ImageRequest, timeout: float | None) -> HttpCall:
            plain = self.call(request, timeout)
            return HttpCall(f"{self.prefix}{plain.path}", plain.body, plain.method)

        try:
            yield HttpClient(self.port, call, self.deadline)
        finally:
            serve.delete(application)


def systems_on_ray(setup: Setup, port: int) -> list[RaySystem]:
    """Return the systems on the Ray Serve of this process, whose proxy listens at `port`."""
    rooms = f"{setup.images} images together"
    return [
        *(
            RaySystem(
                name,
                f"MODEL_DETERMINISM={mode}, {rooms}",
                port,
                f"/{mode}",
                partial(_bind_service, setup, mode),
                _service_call,
            )
            for name, mode in ((STRICT, "strict"), (FAST, "fast"))
        ),
        RaySystem(
            SERVE_BATCH,
            f"stock pipeline, a queue for each kind, max_batch_size={setup.images}, "
            f"batch_wait_timeout_s={BATCH_WAIT_S:g}",
            port,
            "/batch",
            partial(bind_batched, setup),
            lambda request, _: plain_call(request),
            _TIMEOUT_HEADER,
        ),
        RaySystem(
            "Ray's tutorial",
            "stock pipeline in a plain method, one image a call, Serve's defaults",
            port,
            "/tutorial",
            partial(bind_tutorial, setup),
            lambda request, _: plain_call(request),
            _TIMEOUT_HEADER,
        ),
    ]


def _bind_service(setup: Setup, mode: str) -> Application:
    """Return this service with one replica of base, as `aura up` builds it, and one ingress."""
    folder = setup.folder / mode
    folder.mkdir(exist_ok=True)
    settings = {
        "MODEL_CHECKPOINT_DIR": str(setup.checkpoint),
        "MODEL_PRECISION": "fp32",
        "MODEL_DETERMINISM": mode,
        "MODEL_MAX_BATCH_SIZE": str(setup.images),
        "MODEL_CPU_THREADS": str(setup.threads),
        "LEDGER_FILE": str(folder / "ledger.sqlite"),
    }
    if setup.loras:
        models = folder / "models.yaml"
        loras = {name: {"path": str(file)} for name, file in setup.loras.items()}
        models.write_text(yaml.safe_dump({"loras": loras}), encoding="utf-8")
        settings["MODELS_FILE"] = str(models)
    scale = DeploymentScale(min_replicas=1)
    args = AppArgs(ingress=scale, base=scale, settings=settings)
    return bind_service(args, ray_cluster(""), setup.threads, http)


def _service_call(request: ImageRequest, timeout: float | None) -> HttpCall:
    body = {
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": request.steps,
        "width": request.width,
        "height": request.height,
        "guidanceScale": GUIDANCE,
        "imageCount": 1,
        "loras": [{"name": request.lora}] if request.lora else [],
    }
    return HttpCall(
        "/generate", json.dumps(body | ({"timeoutSeconds": timeout} if timeout else {}))
    )
