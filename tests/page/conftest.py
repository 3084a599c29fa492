"""The page in a real browser, over the demo in this process."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from serve_app.core.diffusion.spec import Stage
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, demo_folder
from tests.support.api import make_api
from tests.support.browser import browser as opened_browser
from tests.support.demo_api import demo_info
from tests.support.http_server import serving
from tests.support.local_stage import LocalStage, cpu_stage


@pytest.fixture(scope="package")
def replica() -> Iterator[StageReplica]:
    sources = [ModelSource(FOLDER_NAMES[stage], demo_folder(stage), stage=stage) for stage in Stage]
    replica = StageReplica(cpu_stage(sources, max_loaded_models=2, max_batch_images=4))
    yield replica
    replica.close()


@pytest.fixture(scope="package")
def address(replica: StageReplica) -> Iterator[str]:
    info, stage = demo_info(), LocalStage(replica)
    with serving(make_api(Conductor(stage, stage, info.models), Ledger(None), info)) as address:
        yield address


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Yield the page in a fresh profile; it must load nothing from elsewhere and log no error."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-GB")
    page = context.new_page()
    problems: list[str] = []

    def note_message(message: ConsoleMessage) -> None:
        is_status = message.text.startswith("Failed to load resource: the server responded")
        if message.type in ("error", "warning") and not is_status:
            problems.append(message.text)

    def note_request(request: Request) -> None:
        if not request.url.startswith((address, "blob:", "data:")):
            problems.append(f"asked {request.url}")

    page.on("console", note_message)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", note_request)
    page.goto(address)
    page.locator("html[data-service=ready]").wait_for()
    yield page
    context.close()
    assert not problems
