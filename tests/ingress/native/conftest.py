import pytest
from starlette.types import ASGIApp

from tests.support.api import make_api
from tests.support.fake_conductor import ScriptedConductor
from tests.support.ledgers import WatchedLedger


@pytest.fixture
def maker() -> ScriptedConductor:
    return ScriptedConductor()


@pytest.fixture
def api(maker: ScriptedConductor, ledger: WatchedLedger) -> ASGIApp:
    return make_api(maker, ledger)
