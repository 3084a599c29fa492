"""The page in a real browser, over services in this process."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from serve_app.core.diffusion.spec import Stage
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, demo_folder
from tests.page.fixture_types import OpenPage, Serve
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
def serve() -> Iterator[Serve]:
    with ExitStack() as services:
        yield lambda api: services.enter_context(serving(api))


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Yield what opens pages. They must load nothing from elsewhere and log no error.

    A failed answer, and a connection that fails, are no errors of the page.
    """
    problems: list[str] = []

    def note_message(message: ConsoleMessage) -> None:
        is_answer = message.text.startswith("Failed to load resource:")
        if message.type in ("error", "warning") and not is_answer:
            problems.append(message.text)

    def open_page(address: str, **options: Any) -> Page:
        def note_request(request: Request) -> None:
            if not request.url.startswith((address, "blob:", "data:")):
                problems.append(f"asked {request.url}")

        options = {"viewport": {"width": 1440, "height": 900}, "locale": "en-GB"} | options
        page = contexts.enter_context(browser.new_context(**options)).new_page()
        page.on("console", note_message)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", note_request)
        page.goto(address)
        page.locator("html[data-service]").wait_for()
        return page

    with ExitStack() as contexts:
        yield open_page
    assert not problems


@pytest.fixture
def page(open_page: OpenPage, address: str) -> Page:
    """Return the page of the demo."""
    page = open_page(address)
    page.locator("html[data-service=ready]").wait_for()
    return page
