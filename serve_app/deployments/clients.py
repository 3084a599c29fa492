"""Stages and the ledger as others see them: Ray's handles behind plain contracts.

Knows no samples' insides. Ray's own errors stop here and become named ones.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any, cast

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.errors import AuraError, EngineFault, LedgerAway, Loading, ReplicaLost
from serve_app.core.service.events import ReplicaStats, SegmentDone, StageEvent
from serve_app.core.service.jobs import ClaimResult, IdempotencyClaim, Job, JobResult, JobState
from serve_app.core.service.rate_limit import RateLimit
from serve_app.deployments.ray_private import broadcast_results

logger = logging.getLogger("aura.remote")

_RPC_TIMEOUT = 2.0  # seconds to wait for facts: health must answer while a replica is busy or gone
_FRESH = 0.5  # seconds that facts are good for
_TRY = 2.0  # seconds that one question to the ledger may take
_RESTART = 20.0  # seconds in which a ledger that died should be back
_PAUSE = 0.2  # seconds between two tries


class RemoteStage:
    """Whichever replica of a deployment takes the sample; of which stages is in its name."""

    def __init__(self, name: str, handle: "DeploymentHandle[Any]") -> None:
        self._name = name
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._asked: asyncio.Task[list[ReplicaStats]] | None = None
        self._asked_at = 0.0

    async def advance(
        self, sample: Sample[Any], segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        """Stream the events of the replica that takes the sample.

        Raises `ReplicaLost` when its process is gone, `Loading` when the deployment can't be
        reached, or the named error the replica raised. Closing it early cancels the sample there.
        """
        response = cast(
            "DeploymentResponseGenerator[StageEvent]",
            self._streaming.advance.remote(sample, segment),
        )
        ended = False
        try:
            async for event in response:
                ended = isinstance(event, SegmentDone)
                yield event
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, AuraError):
                raise cause from None
            raise EngineFault(f"the {self._name} replica failed") from error
        except RayError as error:  # the process, its node, or what it had stored there is gone
            raise ReplicaLost(f"a {self._name} replica is gone") from error
        except DeploymentUnavailableError as error:
            raise Loading(f"the {self._name} stage is not ready") from error
        finally:
            if not ended:
                response.cancel()

    async def stats(self) -> list[ReplicaStats]:
        """The facts of every replica that answers in time; none while the stage is loading.

        Everybody who asks within half a second gets the same answer: /health needs no key.
        """
        now = time.monotonic()
        if self._asked is None or (self._asked.done() and now - self._asked_at > _FRESH):
            self._asked, self._asked_at = asyncio.create_task(self._ask_all()), now
        return await asyncio.shield(self._asked)

    async def _ask_all(self) -> list[ReplicaStats]:
        try:
            results = broadcast_results(self._handle.broadcast("stats"))
            asked = await asyncio.wait_for(results, _RPC_TIMEOUT)
        except (TimeoutError, RayError, DeploymentUnavailableError):
            return []
        waits = (asyncio.wait_for(one.get_async(), _RPC_TIMEOUT) for one in asked)
        answers = await asyncio.gather(*waits, return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, ReplicaStats)]


class RemoteLedger:
    """The one ledger, wherever it runs. While it restarts, questions wait and are asked again.

    Every method is `deployments.ledger.Ledger`'s, and raises `LedgerAway` when it stays away.
    """

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle

    async def create(self, job: Job, claim: IdempotencyClaim | None) -> ClaimResult:
        """See `Ledger`."""
        return cast(ClaimResult, await self._ask("create", job, claim))

    async def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: tuple[str, str] | None,
        result: JobResult | None,
    ) -> None:
        """See `Ledger`."""
        await self._ask("finish", id, owner, state, error, result)

    async def get(self, id: str, wait: float) -> Job | None:
        """See `Ledger`."""
        return cast("Job | None", await self._ask("get", id, wait, more=wait))

    async def heartbeat(self, owner: str) -> None:
        """See `Ledger`."""
        await self._ask("heartbeat", owner, rpc_timeout=0)

    async def consume(self, caller: str, cost: float, limit: RateLimit) -> float:
        """See `Ledger`; not asked twice, since a picture waits for it."""
        return cast(float, await self._ask("consume", caller, cost, limit, rpc_timeout=0))

    async def accept_terms(self, caller: str, terms: str) -> None:
        """See `Ledger`."""
        await self._ask("accept_terms", caller, terms)

    async def accepted_terms(self, caller: str) -> str | None:
        """See `Ledger`."""
        return cast("str | None", await self._ask("accepted_terms", caller))

    async def _ask(
        self, method: str, *args: Any, more: float = 0, rpc_timeout: float = _RESTART
    ) -> Any:
        end = time.monotonic() + rpc_timeout
        while True:
            try:
                return await asyncio.wait_for(
                    getattr(self._handle, method).remote(*args), _TRY + more
                )
            except (TimeoutError, RayError, DeploymentUnavailableError) as error:
                if time.monotonic() >= end:
                    logger.warning("the ledger is away: %s", type(error).__name__)
                    raise LedgerAway(
                        "the service's memory of jobs is restarting; ask again shortly"
                    ) from None
            await asyncio.sleep(_PAUSE)
