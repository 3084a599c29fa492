from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from serve_app.core.service.metrics import Meter
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.app import build_api
from serve_app.ingress.contracts import Maker
from serve_app.ingress.job_service import JobService
from tests.support.fake_conductor import INFO, FakeConductor

Client = Callable[..., httpx.AsyncClient]
ORIGIN = "http://localhost:5173"
POLICY = AccessPolicy(origins=(ORIGIN,))


@pytest.fixture
def painter() -> FakeConductor:
    return FakeConductor()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(None)


def api_over(
    conductor: Maker,
    ledger: Any,
    facts: Any = INFO,
    policy: AccessPolicy = POLICY,
    *,
    proxy_names: bool = False,
    meter: Meter | None = None,
    **wishes: Any,
) -> ASGIApp:
    """The whole API on a desk of its own; `wishes` are the desk's."""
    desk = JobService(conductor, ledger, facts, **({"ledger_delay": 0} | wishes))
    return build_api(
        desk, conductor, facts, policy, version="9.9.9", proxy_names=proxy_names, meter=meter
    )


@pytest.fixture
async def client(painter: FakeConductor, ledger: Ledger) -> AsyncIterator[Client]:
    """Makes clients of an API over a conductor; `painter`'s unless another is given.

    All of them share a ledger, as ingress processes do.
    """
    opened: list[httpx.AsyncClient] = []

    def over(
        conductor: Maker = painter,
        *,
        peer: str = "127.0.0.1",
        headers: dict[str, str] | None = None,
        **wishes: Any,
    ) -> httpx.AsyncClient:
        api = api_over(conductor, wishes.pop("ledger", ledger), **wishes)
        transport = httpx.ASGITransport(app=api, raise_app_exceptions=False, client=(peer, 1))
        opened.append(
            httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)
        )
        return opened[-1]

    yield over
    for one in opened:
        await one.aclose()
