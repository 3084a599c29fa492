"""Clients of the stages and of the ledger: Ray's handles behind plain contracts.

Ray's own errors stop here and become named ones.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.errors import AuraError, EngineFault, LedgerAway, Loading
from serve_app.core.replica_errors import ReplicaDied
from serve_app.core.service.events import Accepted, ReplicaStats, SegmentDone, StageEvent
from serve_app.core.service.info import LedgerHealth
from serve_app.core.service.jobs import (
    ClaimResult,
    IdempotencyClaim,
    Job,
    JobError,
    JobFilter,
    JobResult,
    JobState,
)
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.sample_leases import RENEW_EVERY_S
from serve_app.core.service.tasks import ImageSnapshot
from serve_app.core.service.webhooks import DueWebhooks
from serve_app.deployments.known_stats import KnownStats
from serve_app.deployments.ray_private import accepting_replica, broadcast_results

logger = logging.getLogger("aura.clients")

_STATS_TIMEOUT = 0.7  # seconds for all replicas: /health must respond within one second
_RENEW_TIMEOUT = 10.0  # seconds; nobody waits for it
_TAKE_TIMEOUT = 1.5  # seconds for all replicas: those of a dead node never respond
_WATCH_TIMEOUT = 2.0  # seconds for all replicas; nobody waits for it
_STATS_TTL = 0.5  # seconds that stats are reused
_LEDGER_TIMEOUT = 5.0  # seconds, more than the ledger gives its store
_RESTART = 20.0  # seconds in which a ledger that died should be back
_HEALTH_TTL = 1.0  # seconds that the ledger's health is reused
_HEALTH_WAIT = 0.1  # seconds that /health waits for a newer one
_RETRY_PAUSE = 0.2  # seconds between two tries


class RemoteStage:
    """A stage, or both stages, run by whichever replica of a deployment takes the sample."""

    def __init__(
        self,
        name: str,
        handle: "DeploymentHandle[Any]",
        clock: Callable[[], float] = time.monotonic,
        renew_every_s: float = RENEW_EVERY_S,
    ) -> None:
        self._name = name
        self._handle = handle
        self._clock = clock
        self._streaming = handle.options(stream=True)
        self._stats: asyncio.Task[list[ReplicaStats]] | None = None
        self._stats_time = 0.0
        self._known = KnownStats()
        self._sender = uuid4().hex
        self._renew_every_s = renew_every_s
        self._at_work = 0  # samples, of which this process renews the leases
        self._renewing: asyncio.Task[None] | None = None
        self._renewals: set[asyncio.Task[Any]] = set()  # that have not been answered

    async def advance(
        self, sample: Sample[Any], segment: StageSegment
    ) -> AsyncGenerator[StageEvent, None]:
        """Stream the events of the replica that takes the sample.

        Raises `ReplicaDied` if its process is gone, `Loading` if the deployment can't be reached,
        or the named error that the replica raised. Closing the stream early cancels the sample.
        """
        response = cast(
            "DeploymentResponseGenerator[StageEvent]",
            self._streaming.advance.remote(sample, replace(segment, sender=self._sender)),
        )
        ended = False
        self._at_work += 1
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew_leases(), context=Context())
        try:
            replica = await accepting_replica(response)  # which may wait for other images
            yield Accepted(replica)
            async for event in response:
                ended = isinstance(event, SegmentDone)
                yield event
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, AuraError):
                raise cause from None
            raise EngineFault(f"the {self._name} replica failed") from error
        except RayError as error:  # the process, its node, or what it had stored there is gone
            raise ReplicaDied(f"a {self._name} replica is gone") from error
        except DeploymentUnavailableError as error:
            raise Loading(f"the {self._name} stage is not ready") from error
        finally:
            self._at_work -= 1
            if not ended:
                response.cancel()

    async def watch(self, id: str, *, watched: bool) -> None:
        """Let whichever replica has a sample make previews of it, or no longer."""
        await self._call_all("watch", id, watched, timeout=_WATCH_TIMEOUT)

    async def take(self, id: str) -> list[ImageSnapshot]:
        """Return what replicas have of an image whose job this process has taken over."""
        found = await self._call_all("take", id, self._sender, timeout=_TAKE_TIMEOUT)
        return [snapshot for snapshot in found or () if isinstance(snapshot, ImageSnapshot)]

    async def _renew_leases(self) -> None:
        """Renew the leases of all samples of this process, and once more after the last one.

        The first round comes after an interval: a replica hears of this process from its samples. A
        round does not wait for the answers of the one before.
        """
        more = True
        while more:
            await asyncio.sleep(self._renew_every_s)
            more = self._at_work > 0
            call = self._call_all("renew", self._sender, timeout=_RENEW_TIMEOUT)
            task = asyncio.create_task(call, context=Context())
            self._renewals.add(task)
            task.add_done_callback(self._renewals.discard)

    async def _call_all(self, method: str, *args: str | bool, timeout: float) -> list[Any] | None:
        """Return the answer of each replica, or its error; `TimeoutError` if it is silent.

        None while the deployment can't be reached.
        """
        end = asyncio.get_running_loop().time() + timeout

        async def answer(replica: Any) -> Any:
            async with asyncio.timeout_at(end):
                return await replica.get_async()

        try:
            async with asyncio.timeout_at(end):
                replicas = await broadcast_results(self._handle.broadcast(method, *args))
        except (TimeoutError, RayError, DeploymentUnavailableError):
            return None
        return await asyncio.gather(*map(answer, replicas), return_exceptions=True)

    async def stats(self) -> list[ReplicaStats]:
        """Return the stats of every replica that responds in time; none while the stage is loading.

        Calls within half a second share one result, because /health needs no key.
        """
        now = self._clock()
        if self._stats is None or (self._stats.done() and now - self._stats_time > _STATS_TTL):
            self._stats, self._stats_time = (
                asyncio.create_task(self._fetch_stats(), context=Context()),
                now,
            )
        return await asyncio.shield(self._stats)

    async def _fetch_stats(self) -> list[ReplicaStats]:
        """Return the stats of the replicas that respond in time, and what `KnownStats` adds."""
        answers = await self._call_all("stats", timeout=_STATS_TIMEOUT)
        if answers is None:
            return []
        stats = [found for found in answers if isinstance(found, ReplicaStats)]
        silent = sum(isinstance(found, TimeoutError) for found in answers)
        return self._known.update(stats, silent, self._clock())


class RemoteLedger:
    """The one ledger, wherever it runs. While it restarts, calls wait and are tried again.

    Every method is `deployments.ledger.Ledger`'s, and raises `LedgerAway` if it can't be reached.
    What the ledger itself raises is passed on at once: another try would meet the same disk. When
    it has stayed away for as long as a restart takes, calls are tried once, until one succeeds.
    """

    def __init__(self, handle: "DeploymentHandle[Any]", restart_s: float = _RESTART) -> None:
        self._handle = handle
        self._restart_s = restart_s
        self._stays_away = False
        self._health = LedgerHealth()
        self._health_time = -_HEALTH_TTL
        self._asking: asyncio.Task[None] | None = None

    async def create(self, job: Job, claim: IdempotencyClaim | None) -> ClaimResult:
        """See `Ledger`."""
        return cast(ClaimResult, await self._call("create", job, claim))

    async def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None,
        result: JobResult | None,
    ) -> None:
        """See `Ledger`."""
        await self._call("finish", id, owner, state, error, result)

    async def get(self, id: str, wait: float) -> Job | None:
        """See `Ledger`."""
        return cast("Job | None", await self._call("get", id, wait, wait=wait))

    async def has_result(self, id: str) -> bool:
        """See `Ledger`."""
        return cast(bool, await self._call("has_result", id))

    async def find(self, wanted: JobFilter) -> Sequence[Job]:
        """See `Ledger`."""
        return cast("Sequence[Job]", await self._call("find", wanted))

    async def heartbeat(
        self, owner: str, jobs: frozenset[str], load: Mapping[str, Any]
    ) -> Sequence[Mapping[str, Any]]:
        """See `Ledger`."""
        loads = await self._call("heartbeat", owner, jobs, load, retry_for=0)
        return cast("Sequence[Mapping[str, Any]]", loads)

    async def consume(self, caller: str, cost: float, limit: RateLimit) -> float:
        """See `Ledger`. Not tried again, because an image waits for it."""
        return cast(float, await self._call("consume", caller, cost, limit, retry_for=0))

    async def use(self, caller: str, cost: float, quota: float) -> float:
        """See `Ledger`. Not tried again, as `consume`: the first try may have been counted."""
        return cast(float, await self._call("use", caller, cost, quota, retry_for=0))

    async def accept_terms(self, caller: str, terms: str) -> None:
        """See `Ledger`."""
        await self._call("accept_terms", caller, terms)

    async def accepted_terms(self, caller: str) -> str | None:
        """See `Ledger`."""
        return cast("str | None", await self._call("accepted_terms", caller))

    async def set_option(self, caller: str, name: str, value: str) -> None:
        """See `Ledger`."""
        await self._call("set_option", caller, name, value)

    async def option(self, caller: str, name: str) -> str | None:
        """See `Ledger`."""
        return cast("str | None", await self._call("option", caller, name))

    async def secret(self, name: str) -> bytes:
        """See `Ledger`."""
        return cast(bytes, await self._call("secret", name))

    async def take_webhooks(self, url: str, limit: int) -> DueWebhooks:
        """See `Ledger`. Not tried again: the first try may have taken some."""
        return cast(DueWebhooks, await self._call("take_webhooks", url, limit, retry_for=0))

    async def settle_webhook(self, id: str, retry_in: float | None) -> None:
        """See `Ledger`."""
        await self._call("settle_webhook", id, retry_in)

    async def health(self) -> LedgerHealth:
        """Return the newest health that is known, without waiting for a ledger that is away."""
        if self._asking is None and time.monotonic() - self._health_time > _HEALTH_TTL:
            self._asking = asyncio.create_task(self._ask_for_health(), context=Context())
        if self._asking is not None:
            await asyncio.wait([self._asking], timeout=_HEALTH_WAIT)
        return self._health

    async def _ask_for_health(self) -> None:
        try:
            self._health = cast(LedgerHealth, await self._call("health", retry_for=0))
        except LedgerAway as error:
            self._health = LedgerHealth(error.problem)
        finally:
            self._health_time, self._asking = time.monotonic(), None

    async def _call(
        self, method: str, *args: Any, wait: float = 0, retry_for: float | None = None
    ) -> Any:
        """Call a method that takes `wait` seconds; try again for as long as a restart takes.

        Or for `retry_for` seconds.
        """
        patience = self._restart_s if retry_for is None else retry_for
        end = time.monotonic() + (0 if self._stays_away else patience)
        while True:
            try:
                call = getattr(self._handle, method).remote(*args)
                result = await asyncio.wait_for(call, _LEDGER_TIMEOUT + wait)
                self._stays_away = False
                return result
            except RayTaskError as error:  # it is there, and says no
                self._stays_away = False
                if isinstance(error.cause, AuraError):
                    raise error.cause from None
                logger.exception("a call of the ledger failed")
                raise LedgerAway("the ledger of jobs failed; its log says why") from None
            except (TimeoutError, RayError, DeploymentUnavailableError) as error:
                if time.monotonic() >= end:
                    self._stays_away = self._stays_away or patience > 0
                    logger.warning("the ledger is away: %s", type(error).__name__)
                    raise LedgerAway(
                        "the ledger of jobs is restarting", remedy="Try again shortly"
                    ) from None
            await asyncio.sleep(_RETRY_PAUSE)
