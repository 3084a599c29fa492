"""Cancelling a request at any time ends its job: before its headers, and before its first event."""

import pytest
from playwright.sync_api import Page, Route, expect

from serve_app.deployments.ledger import Ledger
from tests.page.actions import draw, stop_clock, wait_for_pictures
from tests.page.fixture_types import OpenPage, Serve
from tests.page.small_service import SMALL
from tests.support.api import make_api
from tests.support.fake_conductor import ScriptedConductor
from tests.support.waiting import until


@pytest.fixture
def conductor() -> ScriptedConductor:
    return ScriptedConductor()


@pytest.fixture
def page(open_page: OpenPage, serve: Serve, conductor: ScriptedConductor) -> Page:
    """Return the page of a service that begins pictures, and says nothing of them."""
    return open_page(serve(make_api(conductor, Ledger(None), SMALL)))


def test_a_picture_without_any_event_yet_can_be_cancelled(
    page: Page, conductor: ScriptedConductor
) -> None:
    with page.expect_response(lambda response: response.url.endswith("/generate")):
        draw(page)
    until(lambda: conductor.open_jobs == 1)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".tile")).to_have_count(0)
    until(lambda: conductor.cancelled == 1)
    until(lambda: conductor.open_jobs == 0)


def test_a_request_that_is_cancelled_on_its_way_ends_its_job_when_it_is_answered(
    page: Page, conductor: ScriptedConductor
) -> None:
    on_the_way: list[Route] = []
    page.route("**/generate", lambda route: on_the_way.append(route))
    with page.expect_request("**/generate"):
        draw(page, images=2)
    page.get_by_role("button", name="Cancel").first.click()
    expect(page.locator(".tile")).to_have_count(0)
    on_the_way[0].continue_()
    until(lambda: conductor.cancelled == 2)
    until(lambda: conductor.open_jobs == 0)
    assert page.locator(".tile").count() == 0


def test_a_request_that_is_cancelled_on_its_way_and_refused_is_not_sent_again(
    page: Page, conductor: ScriptedConductor
) -> None:
    on_the_way: list[Route] = []
    page.route("**/generate", lambda route: on_the_way.append(route))
    stop_clock(page)
    with page.expect_request("**/generate"):
        draw(page)
    page.get_by_role("button", name="Cancel").click()
    with page.expect_response("**/generate"):
        error = {"code": "OVERLOADED", "message": "the queue is full"}
        on_the_way[0].fulfill(status=503, headers={"Retry-After": "1"}, json={"error": error})
    with page.expect_request("**/generate"):
        draw(page, prompt="another")
    expect(page.locator(".tile")).to_have_count(1)
    page.clock.run_for(3000)
    on_the_way[1].continue_()
    until(lambda: conductor.open_jobs == 1)
    conductor.say(None)
    wait_for_pictures(page, 1)
    assert len(on_the_way) == 2
