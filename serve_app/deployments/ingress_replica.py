"""`IngressReplica`: a CPU replica with a conductor behind an HTTP app that it is given.

No HTTP: `app.py` passes in what opens the app, and Serve asks the replica for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app import __version__
from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.capacity.demand import to_wire
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.convictions import Conviction
from serve_app.core.service.info import Health, ModelInfo
from serve_app.core.service.metrics import BUILD_INFO, Meter
from serve_app.core.service.unfinished import Unfinished
from serve_app.core.startup_error import startup_errors
from serve_app.deployments.autoscaling import MAX_TOTAL_REPLICAS
from serve_app.deployments.clients import RemoteLedger, RemoteStage
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ray_metrics import RayMeter
from serve_app.deployments.ray_private import broadcast_results
from serve_app.deployments.replica_log import DEFAULT_LOG, LogLines, LogOptions, open_log
from serve_app.deployments.retirement import RetirementWatch

_CALL_TIMEOUT_S = 5.0  # in which every ingress replica should have answered


class HttpIngress(Protocol):
    """The HTTP side of one ingress replica, and the jobs that it works at."""

    @property
    def asgi(self) -> Any:
        """The ASGI app."""

    def cancel(self, job_id: str) -> None:
        """Cancel the job if this process works at it."""

    async def view(self, job_id: str, wanted: Any) -> Any:
        """Return the job's events; None if this process does not work at it."""

    def resume(self, is_retiring: Callable[[], bool]) -> None:
        """Finish what others have left unfinished, beside everything else, but while retiring."""

    async def drain(self) -> None:
        """Wait until every job of this process has ended and the ledger knows of it."""

    async def save(self) -> None:
        """Keep how far the jobs are, in case this process is ended before they are."""

    async def stop(self) -> Unfinished:
        """End every job within seconds; return how many are in the spool, and how many lost."""


class OpenHttp(Protocol):
    """A factory of the HTTP side. It is pickled by reference and called in the replica."""

    def __call__(
        self,
        conductor: Conductor,
        ledger: RemoteLedger,
        meter: Meter,
        cancel_everywhere: Callable[[str], Awaitable[None]],
        view_everywhere: Callable[[str, Any], Awaitable[Any]],
    ) -> HttpIngress:
        """Open the HTTP side over a conductor and the ledger."""


@dataclass(frozen=True, slots=True)
class IngressConfig:
    """All that an ingress replica needs to know, by value."""

    open_http: OpenHttp
    models: tuple[ModelInfo, ...]  # the default one first
    refiner_name: str | None = None
    max_total_replicas: int | None = None  # of the stages that autoscale, together; None: no limit
    scale_to_zero: tuple[Stage, ...] = ()  # stages that may have no replica
    log: LogOptions = DEFAULT_LOG
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)


class IngressReplica:
    """One ingress process: the HTTP side, a conductor, and handles to stages and ledger."""

    @startup_errors("the ingress")
    def __init__(
        self,
        config: IngressConfig,
        ledger: "DeploymentHandle[Any]",
        base: "DeploymentHandle[Any]",
        refiner: "DeploymentHandle[Any] | None",
    ) -> None:
        context = serve.get_replica_context()
        self._config, self._id = config, context.replica_id.unique_id
        self._calls: set[asyncio.Task[None]] = set()  # of other ingress replicas
        self._log = open_log(self._id, config.log)
        self._meter = RayMeter()
        self._versions = {"version": __version__, "torch": version("torch")}
        clients = _stage_clients(base, refiner)
        self._conductor = Conductor(
            *clients,
            config.models,
            self._meter,
            config.scale_to_zero,
            config.refiner_name,
            config.limits,
            self._convict_everywhere,
        )
        self._replicas = serve.get_deployment_handle(context.deployment, context.app_name)
        self._http = config.open_http(
            self._conductor,
            RemoteLedger(ledger),
            self._meter,
            self._cancel_everywhere,
            self._view_everywhere,
        )
        self._retirement = RetirementWatch(self._http.save)
        self._http.resume(lambda: self._retirement.is_silent)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the ASGI app. Serve calls this in the replica, so the app is never pickled."""
        return self._http.asgi

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the demand of what was accepted here; Serve passes it to the policy.

        Serve calls this every second, which also keeps the gauge of versions from going stale.
        """
        self._meter.record(BUILD_INFO, 1.0, **self._versions)
        numbers = to_wire(await self._conductor.demands())
        limit = self._config.max_total_replicas
        return numbers if limit is None else numbers | {MAX_TOTAL_REPLICAS: limit}

    async def log_lines(self, cursors: Mapping[str, int]) -> LogLines:
        """Return what this replica has logged since the reader's cursors, which are by replica."""
        return self._log.after(cursors)

    async def health(self) -> Health:
        """Return whether an image could be made now, as this replica knows it."""
        return await self._conductor.health()

    async def cancel(self, job_id: str) -> None:
        """Cancel the job if this replica works at it."""
        self._http.cancel(job_id)

    async def view(self, job_id: str, wanted: Any) -> Any:
        """Return the job's events; None if this replica does not work at it."""
        return await self._http.view(job_id, wanted)

    async def convict(self, conviction: Conviction, replica: str) -> None:
        """Refuse an image that has killed a replica, as the ingress replica of that id has found.

        It knows that already, and one conviction must not count twice.
        """
        if replica != self._id:
            self._conductor.convict(conviction)

    async def drain(self) -> None:
        """Refuse new images, and wait until every accepted one has ended and the ledger knows."""
        # Together: the HTTP side may have images of a maker that the conductor does not know.
        await asyncio.gather(self._conductor.drain(), self._http.drain())

    async def record_routing_stats(self) -> dict[str, Any]:
        """Return nothing: that Serve calls this says that it does not retire this replica."""
        self._retirement.note_poll()
        return {}

    async def stop(self) -> Unfinished:
        """End within seconds whatever the drain has not finished, and spool what can be."""
        return await self._http.stop()

    async def __del__(self) -> None:
        """Drain: Serve calls this before a replica retires.

        Jobs whose caller has disconnected would be lost otherwise.
        """
        await self.drain()

    async def _cancel_everywhere(self, job_id: str) -> None:
        await self._call_all("cancel", job_id)  # a silent replica may cancel: the ledger shows it

    async def _view_everywhere(self, job_id: str, wanted: Any) -> Any:
        """Return the events of the one replica that works at the job; None if none does."""
        with suppress(TimeoutError, RayError, DeploymentUnavailableError):
            calls = self._replicas.broadcast("view", job_id, wanted)
            async with asyncio.timeout(_CALL_TIMEOUT_S + wanted.seconds):
                replies = [reply.get_async() for reply in await broadcast_results(calls)]
                for reply in asyncio.as_completed(replies):
                    with suppress(RayError):
                        if (found := await reply) is not None:
                            return found
        return None

    def _convict_everywhere(self, conviction: Conviction) -> None:
        call = self._call_all("convict", conviction, self._id)
        task = asyncio.create_task(call, context=Context())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call_all(self, method: str, *args: Any) -> None:
        """Call a method of all ingress replicas, this one among them; give up on silent ones."""
        with suppress(TimeoutError, RayError, DeploymentUnavailableError):
            calls = self._replicas.broadcast(method, *args)
            await calls.results_async(timeout_s=_CALL_TIMEOUT_S, return_exceptions=True)


def _stage_clients(
    base: "DeploymentHandle[Any]", refiner: "DeploymentHandle[Any] | None"
) -> tuple[RemoteStage, RemoteStage | None]:
    """Return the clients of both stages: the same one where one deployment runs both."""
    if refiner is None:
        return RemoteStage("base", base), None
    if refiner.deployment_id == base.deployment_id:
        combined = RemoteStage("base and refiner", base)
        return combined, combined
    return RemoteStage("base", base), RemoteStage("refiner", refiner)
