"""The whole API over the demo checkpoint in this process, without Ray."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

from serve_app.config.catalog import find_checkpoints, service_info
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.info import ServiceInfo
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.model_loading import load_models
from serve_app.deployments.stage_config import ModelSource, StageConfig
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, demo_folder
from serve_app.runtime.memory.model_cache import ModelCache
from tests.support.api import Client
from tests.support.local_stage import LocalStage, cpu_stage


def demo_info() -> ServiceInfo:
    """Return what a service without any settings says of itself."""
    settings = Settings.read({})
    return service_info(settings, find_checkpoints(settings), "cpu")


@asynccontextmanager
async def demo_client(
    load: Callable[[StageConfig], ModelCache] = load_models, *, mcp: bool = False
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a service with one replica of both stages, or of what `load` returns."""
    info = demo_info()
    sources = [ModelSource(FOLDER_NAMES[stage], demo_folder(stage), stage=stage) for stage in Stage]
    stage = LocalStage(StageReplica(cpu_stage(sources, max_loaded_models=2), load=load))
    clients = Client(Conductor(stage, stage, info.models), Ledger(None))
    try:
        yield clients(info=info, mcp=mcp)
    finally:
        await clients.close()
