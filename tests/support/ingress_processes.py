"""Several ingress processes over one ledger, in one event loop."""

import asyncio

from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.app import build_api, open_doors
from serve_app.ingress.contracts import Ledger, Maker
from serve_app.ingress.job_service import JobService
from serve_app.ingress.job_views import JobView, ViewRequest
from tests.support.fake_conductor import INFO


class IngressProcesses:
    """Two ingress processes, each of which can ask both for a job's events, and cancel it."""

    def __init__(
        self,
        maker: Maker,
        ledger: Ledger,
        info: ServiceInfo = INFO,
        max_jobs: int = AdmissionLimits().open_requests,
    ) -> None:
        async def view(id: str, wanted: ViewRequest) -> JobView | None:
            found = [jobs.views.view(id, wanted) for jobs in self.jobs]
            answers = await asyncio.gather(*found)
            return next((answer for answer in answers if answer is not None), None)

        async def cancel(id: str) -> None:
            for jobs in self.jobs:
                jobs.cancel_here(id)

        self.jobs = [
            JobService(maker, ledger, info, view_everywhere=view, cancel_everywhere=cancel)
            for _ in range(2)
        ]
        self.apis = [
            build_api(
                jobs,
                maker,
                info,
                AccessPolicy(),
                version="1",
                max_jobs=max_jobs,
                doors=open_doors(mcp=True),
            )
            for jobs in self.jobs
        ]

    async def drain(self) -> None:
        """Wait until all jobs have ended and the ledger knows."""
        for jobs in self.jobs:
            await jobs.drain()
