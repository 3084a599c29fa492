from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from serve_app.ingress.routes import Conductor, build_api
from tests.ingress.conducting import FACTS, Painter

Client = Callable[..., httpx.AsyncClient]


@pytest.fixture
def painter() -> Painter:
    return Painter()


@pytest.fixture
async def client(painter: Painter) -> AsyncIterator[Client]:
    """Makes clients of an API over a conductor; `painter`'s unless another is given."""
    opened: list[httpx.AsyncClient] = []

    def over(conductor: Conductor = painter, facts: object = FACTS) -> httpx.AsyncClient:
        api = build_api(
            conductor,
            facts,  # type: ignore[arg-type]
            origins=["http://localhost:5173"],
            version="9.9.9",
        )
        transport = httpx.ASGITransport(app=api, raise_app_exceptions=False)
        opened.append(httpx.AsyncClient(transport=transport, base_url="http://localhost"))
        return opened[-1]

    yield over
    for one in opened:
        await one.aclose()
