"""The systems that are programs of their own, and all systems together."""

from serve_app.bench.serve.systems.engine_alone import EngineAlone
from serve_app.bench.serve.systems.litserve_environment import (
    BATCH_KINDS,
    BATCH_TIMEOUT_S,
    litserve_python,
)
from serve_app.bench.serve.systems.on_ray import systems_on_ray
from serve_app.bench.serve.systems.server_process import ServerProcess
from serve_app.bench.serve.systems.setup import Setup
from serve_app.bench.serve.systems.system import System

_PACKAGE = __name__.rpartition(".")[0]
LITSERVE, LOCKED = "LitServe", "FastAPI, a lock"


def every_system(setup: Setup, port: int) -> list[System]:
    """Return all systems; those on Ray are behind its proxy at `port`."""
    systems: list[System] = [
        *systems_on_ray(setup, port),
        ServerProcess(
            LITSERVE,
            f"stock pipeline, max_batch_size={setup.images * BATCH_KINDS} in calls of one kind and "
            f"at most {setup.images}, batch_timeout={BATCH_TIMEOUT_S:g}",
            f"{_PACKAGE}.litserve_server",
            setup,
            litserve_python,
        ),
        ServerProcess(
            LOCKED, "stock pipeline, one image at a time", f"{_PACKAGE}.locked_fastapi", setup
        ),
    ]
    if not setup.loras:
        systems += [EngineAlone(setup, strict=True), EngineAlone(setup, strict=False)]
    return systems
