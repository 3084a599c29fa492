"""A spooled job of the demo, as a service that was stopped leaves it, made without Ray."""

import asyncio
from pathlib import Path
from typing import Any

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.core.service.unfinished import Unfinished
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.ingress.app import RERUN_FORMATS
from serve_app.ingress.job_spool import JobSpool
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, demo_folder
from serve_app.spool.folder import SpoolFolder
from tests.support.api import Client
from tests.support.demo_api import demo_info
from tests.support.local_stage import LocalStage, cpu_stage
from tests.support.waiting import first_match, until_async


async def spool_demo_job(spool: Path, ledger_file: Path, body: dict[str, Any], key: str) -> str:
    """Stop a service in the middle of a request for one image; return the id of its job.

    The service runs on one CPU thread, in batches of two images.
    """
    info, folder = demo_info(), SpoolFolder(spool)
    folder.open()
    sources = [ModelSource(FOLDER_NAMES[stage], demo_folder(stage), stage=stage) for stage in Stage]
    replica = StageReplica(cpu_stage(sources, max_loaded_models=2))
    stage = LocalStage(replica)
    conductor = Conductor(stage, stage, info.models, refiner_name=info.refiner)
    ledger = Ledger(LedgerFile(ledger_file))
    clients = Client(conductor, ledger)
    http = clients(info=info, spool=JobSpool(folder, RERUN_FORMATS, info))
    request = http.post("/generate", json=body, headers={"Idempotency-Key": key}, timeout=120)
    call = asyncio.ensure_future(request)

    stats = await first_match(replica.stats, lambda stats: bool(stats.engine.positions))
    (image,) = stats.engine.positions

    def is_halfway() -> bool:
        snapshot = conductor.snapshot(image)
        return snapshot is not None and snapshot.sample.index > 0

    await until_async(is_halfway)
    assert await clients.jobs[-1].stop() == Unfinished(spooled=1)
    assert (await call).status_code == 503
    await clients.close()
    replica.close()
    ledger.close()
    (id,) = folder.ids()
    return id
