from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from serve_app.cloud.gemini_maker import GeminiMaker
from serve_app.cloud.gemini_options import MODEL_NAME
from serve_app.core.service.metrics import InMemoryMeter
from serve_app.ingress.maker_by_model import MakerByModel
from tests.support.api import Client
from tests.support.cloud_caller import Caller, info_of
from tests.support.fake_conductor import FakeConductor
from tests.support.gemini_stand_in import GeminiStandIn, gemini_stand_in
from tests.support.ledgers import WatchedLedger


@pytest.fixture
def gemini() -> Iterator[GeminiStandIn]:
    with gemini_stand_in() as server:
        yield server


@pytest.fixture
def local() -> FakeConductor:
    return FakeConductor()


@pytest.fixture
def ledger() -> WatchedLedger:
    return WatchedLedger()


@pytest.fixture
def meter() -> InMemoryMeter:
    return InMemoryMeter()


@pytest.fixture
async def client(local: FakeConductor, ledger: WatchedLedger) -> AsyncIterator[Client]:
    clients = Client(local, ledger)
    yield clients
    await clients.close()


@pytest.fixture
async def caller(
    client: Client, local: FakeConductor, gemini: GeminiStandIn, meter: InMemoryMeter
) -> AsyncIterator[Caller]:
    makers: list[GeminiMaker] = []

    def call(*, is_default: bool = True, **options: Any) -> httpx.AsyncClient:
        cloud = GeminiMaker(gemini.options(**options), meter)
        makers.append(cloud)
        maker = MakerByModel(local, cloud, MODEL_NAME, is_default=is_default)
        return client(maker, info=info_of(is_default=is_default), meter=meter)

    yield call
    await client.drain()
    for maker in makers:
        await maker.close()
