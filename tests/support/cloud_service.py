"""A service whose default model is a cloud's, with a cloud of its own on this machine."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from serve_app.cloud.gemini_maker import GeminiMaker
from serve_app.cloud.gemini_options import MODEL_NAME
from serve_app.core.service.metrics import InMemoryMeter
from serve_app.ingress.maker_by_model import MakerByModel
from tests.support.api import Client
from tests.support.cloud_caller import info_of
from tests.support.fake_conductor import FakeConductor
from tests.support.gemini_stand_in import GeminiStandIn, gemini_stand_in
from tests.support.ledgers import WatchedLedger


@dataclass(frozen=True)
class CloudService:
    """What there is of a service; `http` calls it."""

    http: httpx.AsyncClient
    gemini: GeminiStandIn
    cloud: GeminiMaker
    ledger: WatchedLedger


@asynccontextmanager
async def cloud_service(
    gemini: Mapping[str, Any] | None = None, info: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[CloudService]:
    """Run a service for the duration of the block.

    `gemini` are the options of its maker, `info` what is changed of its `ServiceInfo`, and
    `options` those of its client.
    """
    meter, ledger = InMemoryMeter(), WatchedLedger()
    with gemini_stand_in() as server:
        cloud = GeminiMaker(server.options(**(gemini or {})), meter)
        maker = MakerByModel(FakeConductor(), cloud, MODEL_NAME, is_default=True)
        clients = Client(maker, ledger)
        known = replace(info_of(is_default=True), **(info or {}))
        try:
            http = clients(info=known, meter=meter, **options)
            yield CloudService(http, server, cloud, ledger)
        finally:
            await clients.drain()
            await cloud.close()
            await clients.close()
