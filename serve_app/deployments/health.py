"""Whether an image could be made now, by what the replicas of the stages report.

No HTTP and no Ray: a stage is anything that keeps the `StageClient` contract.
"""

import asyncio
from collections.abc import Collection, Mapping

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.info import Health, HealthStatus
from serve_app.deployments.stage_client import StageClient


async def stage_health(
    stages: Mapping[Stage, StageClient], scale_to_zero: Collection[Stage], *, is_draining: bool
) -> Health:
    """Return whether an image could be made now, and by how many replicas that don't hang.

    The stages in `scale_to_zero` need no replica. One client may be both stages.
    """
    clients: dict[StageClient, list[Stage]] = {}
    for stage, client in stages.items():
        clients.setdefault(client, []).append(stage)
    answers = await asyncio.gather(*(client.stats() for client in clients))
    replicas: dict[str, int] = {}
    owed, warnings, hanging = 0.0, dict[str, None](), list[str]()
    for names, stats in zip(clients.values(), answers, strict=True):
        both = " and ".join(names)
        well = [replica for replica in stats if not replica.is_hanging]
        if len(well) < len(stats):
            hanging.append(_hanging(len(stats) - len(well), both))
        replicas |= dict.fromkeys(map(str, names), len(well))
        owed += sum(replica.owed_seconds for replica in well)
        warnings |= {f"{both}: {found.shortfall}": None for found in well if found.shortfall}
    if is_draining:
        return Health(HealthStatus.DRAINING, "the service is shutting down", replicas, owed)
    missing = [stage for stage, n in replicas.items() if not n and stage not in scale_to_zero]
    if missing:
        reason = "; ".join([f"no replica of {' and '.join(missing)} is ready yet", *hanging])
        return Health(HealthStatus.LOADING, reason, replicas, owed)
    status = HealthStatus.DEGRADED if hanging else HealthStatus.READY
    return Health(status, "; ".join(hanging), replicas, owed, tuple(warnings))


def _hanging(count: int, stages: str) -> str:
    if count == 1:
        return f"a replica of {stages} hangs and will be replaced"
    return f"{count} replicas of {stages} hang and will be replaced"
