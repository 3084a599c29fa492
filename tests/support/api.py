"""The whole HTTP API over a maker of images, without a server."""

from collections.abc import Sequence
from typing import Any

import httpx
from starlette.types import ASGIApp

from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.metrics import Meter
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.app import DOORS, build_api, open_doors
from serve_app.ingress.contracts import Ledger, Maker
from serve_app.ingress.door import Door
from serve_app.ingress.job_service import JobService
from tests.support.fake_conductor import INFO

ORIGIN = "http://localhost:5173"
POLICY = AccessPolicy(origins=(ORIGIN,))
VERSION = "9.9.9"


def make_api(
    maker: Maker,
    ledger: Ledger,
    info: ServiceInfo = INFO,
    policy: AccessPolicy = POLICY,
    *,
    version: str = VERSION,
    proxy_sets_request_id: bool = False,
    meter: Meter | None = None,
    doors: Sequence[Door] = DOORS,
    **options: Any,
) -> ASGIApp:
    """Return the API with a job service of its own; `options` are those of the job service."""
    jobs = JobService(maker, ledger, info, **options)
    return build_api(
        jobs,
        maker,
        info,
        policy,
        version=version,
        proxy_sets_request_id=proxy_sets_request_id,
        meter=meter,
        doors=doors,
    )


class Client:
    """Makes HTTP clients, each of an API of its own: ingress processes that share a ledger."""

    def __init__(self, maker: Maker, ledger: Ledger) -> None:
        self._maker = maker
        self._ledger = ledger
        self._clients: list[httpx.AsyncClient] = []
        self.jobs: list[JobService] = []

    def __call__(
        self,
        maker: Maker | None = None,
        *,
        ledger: Ledger | None = None,
        info: ServiceInfo = INFO,
        policy: AccessPolicy = POLICY,
        peer: str = "127.0.0.1",
        headers: dict[str, str] | None = None,
        proxy_sets_request_id: bool = False,
        meter: Meter | None = None,
        max_jobs: int = AdmissionLimits().open_requests,
        base_url: str | None = None,
        webhook_urls: frozenset[str] = frozenset(),
        a1111: bool = True,
        mcp: bool = False,
        **options: Any,
    ) -> httpx.AsyncClient:
        """Return a client that calls from `peer`; `options` are those of the job service."""
        maker = maker or self._maker
        jobs = JobService(maker, ledger or self._ledger, info, **options)
        api = build_api(
            jobs,
            maker,
            info,
            policy,
            version=VERSION,
            proxy_sets_request_id=proxy_sets_request_id,
            meter=meter,
            max_jobs=max_jobs,
            base_url=base_url,
            webhook_urls=webhook_urls,
            doors=open_doors(a1111=a1111, mcp=mcp),
        )
        transport = httpx.ASGITransport(app=api, raise_app_exceptions=False, client=(peer, 1))
        client = httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        )
        self.jobs.append(jobs)
        self._clients.append(client)
        return client

    async def drain(self) -> None:
        """Wait until all jobs have ended and the ledger knows."""
        for jobs in self.jobs:
            await jobs.drain()

    async def close(self) -> None:
        """Close all clients."""
        for client in self._clients:
            await client.aclose()
