"""The HTTP side of one ingress replica: the app, and the jobs that it works at.

No Ray: the conductor, the ledger and the meter are handed in.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp

from serve_app import __version__
from serve_app.cloud.gemini_maker import GeminiMaker
from serve_app.cloud.gemini_options import MODEL_NAME, GeminiOptions
from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.service.info import ServiceInfo
from serve_app.core.service.metrics import Meter
from serve_app.core.service.moderation import WordList
from serve_app.core.service.rate_limit import RateLimit
from serve_app.core.service.unfinished import Unfinished
from serve_app.core.service.webhooks import WebhookReceiver
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.app import RERUN_FORMATS, build_api, open_doors
from serve_app.ingress.contracts import Ledger, Maker
from serve_app.ingress.job_service import JobService
from serve_app.ingress.job_spool import JobSpool
from serve_app.ingress.job_views import JobView, ViewEverywhere, ViewRequest
from serve_app.ingress.maker_by_model import MakerByModel
from serve_app.ingress.webhooks import WebhookSender
from serve_app.process import allocator, garbage
from serve_app.spool.folder import SpoolFolder


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The configuration of the HTTP side, by value; API keys as digests only."""

    info: ServiceInfo
    access_policy: AccessPolicy
    blocked_words: tuple[str, ...] = ()
    rate_limit: RateLimit | None = None
    max_jobs: int = AdmissionLimits().open_requests
    caller_weights: Mapping[str, float] = field(default_factory=dict)  # by name
    daily_quotas: Mapping[str, float] = field(default_factory=dict)  # by name, megapixel-steps
    spool: Path | None = None  # DRAIN_SPOOL
    base_url: str | None = None  # IMAGE_SERVICE_BASE_URL
    webhook_receivers: tuple[WebhookReceiver, ...] = ()  # WEBHOOK_URLS
    gemini: GeminiOptions | None = None  # None: no cloud
    a1111: bool = True  # A1111_API
    mcp: bool = False  # MCP_API


class HttpIngress:
    """The ASGI app over a job service of its own."""

    def __init__(
        self,
        asgi: ASGIApp,
        jobs: JobService,
        webhooks: WebhookSender,
        cloud: GeminiMaker | None = None,
    ) -> None:
        self.asgi = asgi
        self._jobs = jobs
        self._webhooks = webhooks
        self._cloud = cloud

    def cancel(self, job_id: str) -> None:
        """Cancel the job if this process works at it."""
        self._jobs.cancel_here(job_id)

    async def view(self, job_id: str, wanted: ViewRequest) -> JobView | None:
        """Return the job's events; None if this process does not work at it."""
        return await self._jobs.views.view(job_id, wanted)

    def resume(self, is_retiring: Callable[[], bool]) -> None:
        """Finish what others have left unfinished, beside everything else, but while retiring."""
        self._jobs.resume(is_retiring)
        self._webhooks.start()

    async def drain(self) -> None:
        """Wait until every job of this process has ended and the ledger has its result.

        The conductor refuses new images by then; from now on the cloud's maker does.
        """
        if self._cloud is not None:
            self._cloud.is_draining = True
        await self._jobs.drain()

    async def save(self) -> None:
        """Keep how far the jobs are, in case this process is ended before they are."""
        await self._jobs.save()

    async def stop(self) -> Unfinished:
        """End every job within seconds; return how many are in the spool, and how many lost."""
        unfinished = await self._jobs.stop()
        await self._webhooks.stop()
        if self._cloud is not None:
            await self._cloud.close()
        return unfinished


def open_ingress(
    config: HttpConfig,
    maker: Maker,
    ledger: Ledger,
    meter: Meter,
    cancel_everywhere: Callable[[str], Awaitable[None]],
    view_everywhere: ViewEverywhere | None = None,
) -> HttpIngress:
    """Open the HTTP side over a maker of images and the ledger.

    `cancel_everywhere` cancels a job in whichever ingress process works at it, and
    `view_everywhere` asks that one for its events; without it there is one process. Raises
    `SettingsError` for a spool that can't be used.
    """
    cloud = None
    if config.gemini is not None:
        cloud = GeminiMaker(config.gemini, meter)
        is_default = config.info.default_model.cloud is not None
        maker = MakerByModel(maker, cloud, MODEL_NAME, is_default=is_default)
    allocator.give_back_large_blocks()
    garbage.collect_seldom()
    words = config.blocked_words
    webhooks = WebhookSender(ledger, config.webhook_receivers, meter)
    jobs = JobService(
        maker,
        ledger,
        config.info,
        prompt_filter=WordList(words) if words else None,
        rate_limit=config.rate_limit,
        daily_quotas=config.daily_quotas,
        caller_weights=config.caller_weights,
        cancel_everywhere=cancel_everywhere,
        view_everywhere=view_everywhere,
        spool=_open_spool(config.spool, config.info) if config.spool else None,
        on_webhook=webhooks.note,
    )
    asgi = build_api(
        jobs,
        maker,
        config.info,
        config.access_policy,
        version=__version__,
        proxy_sets_request_id=True,
        meter=meter,
        max_jobs=config.max_jobs,
        base_url=config.base_url,
        webhook_urls=frozenset(receiver.url for receiver in config.webhook_receivers),
        doors=open_doors(a1111=config.a1111, mcp=config.mcp),
    )
    return HttpIngress(asgi, jobs, webhooks, cloud)


def _open_spool(path: Path, info: ServiceInfo) -> JobSpool:
    folder = SpoolFolder(path)
    folder.open()
    return JobSpool(folder, RERUN_FORMATS, info)
