"""The API over HTTP, and OpenAI's own client of it."""

from collections.abc import Iterator

import openai
import pytest

from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy, digests
from tests.support.api import make_api
from tests.support.fake_conductor import FakeConductor
from tests.support.http_server import serving
from tests.support.openai_client import KEY

POLICY = AccessPolicy(keys=digests([KEY]))


@pytest.fixture(scope="module")
def conductor() -> FakeConductor:
    return FakeConductor()


@pytest.fixture(scope="module")
def address(conductor: FakeConductor) -> Iterator[str]:
    with serving(make_api(conductor, Ledger(None), policy=POLICY)) as address:
        yield f"{address}/v1"


@pytest.fixture
def sdk(address: str, conductor: FakeConductor) -> Iterator[openai.OpenAI]:
    """Yield a client of OpenAI's with nothing but its base URL changed."""
    conductor.calls.clear()
    with openai.OpenAI(api_key=KEY, base_url=address, max_retries=0) as client:
        yield client
