"""The page over a network that breaks: the service goes away, and comes back."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Page, Request, Route, expect

from serve_app.core.service.info import HealthStatus
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_replica import StageReplica
from serve_app.ingress.access import AccessPolicy, digests
from tests.page.actions import DRAWING_MS, draw, stop_clock, wait_for_pictures
from tests.page.fixture_types import OpenPage, Serve
from tests.page.small_service import SMALL
from tests.support.api import make_api
from tests.support.fake_conductor import FakeConductor
from tests.support.network_link import NetworkLink
from tests.support.paused_drawing import PausedDrawing

LOOK_MS = 5000  # between two looks at the service
SILENCE_MS = 30_000  # after which a stream is taken for broken
PAUSES_MS = (500, 1000, 2000, 4000, 8000)  # before each try to join again
STEPS, PAUSE_STEP = 60, 5


@pytest.fixture
def service(replica: StageReplica) -> PausedDrawing:
    return PausedDrawing(replica)


@pytest.fixture
def link(service: PausedDrawing) -> Iterator[NetworkLink]:
    with service.serving() as address, NetworkLink(address) as link:
        yield link


@pytest.fixture
def page(open_page: OpenPage, link: NetworkLink) -> Page:
    """Return the demo's page behind a network that a test can break."""
    page = open_page(link.address)
    page.locator("html[data-service=ready]").wait_for()
    return page


def wait_for_step(page: Page, step: int) -> None:
    """Wait until the only picture that is being drawn has come to a step."""
    page.wait_for_function(
        "part => document.querySelector('.running progress')?.value >= part",
        arg=step / STEPS,
        timeout=DRAWING_MS,
    )


def is_rejoin(request: Request) -> bool:
    """Return whether a request joins a job that runs already."""
    return request.url.endswith("/events")


def test_a_stream_that_breaks_is_joined_again_and_the_picture_comes(
    page: Page, link: NetworkLink, service: PausedDrawing
) -> None:
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.method))
    with service.stage.paused(PAUSE_STEP):
        draw(page, steps=STEPS)
        wait_for_step(page, PAUSE_STEP)
        with page.expect_request(is_rejoin) as rejoin:
            link.drop()
    assert rejoin.value.headers["accept"] == "text/event-stream"
    wait_for_pictures(page, 1)
    assert posted.count("POST") == 1


def test_a_stream_that_falls_silent_is_joined_again(
    page: Page, link: NetworkLink, service: PausedDrawing
) -> None:
    stop_clock(page)
    with service.stage.paused(PAUSE_STEP):
        draw(page, steps=STEPS)
        wait_for_step(page, PAUSE_STEP)
        link.silence()
        with page.expect_request(is_rejoin):
            page.clock.run_for(SILENCE_MS)
            expect(page.locator(".running .status")).to_have_text(
                "The connection broke. Joining again…"
            )
            link.drop()
            page.clock.run_for(PAUSES_MS[0])
    wait_for_pictures(page, 1)


@pytest.mark.long
def test_a_service_that_is_away_for_a_while_is_tried_again_and_the_picture_comes(
    page: Page, link: NetworkLink, service: PausedDrawing
) -> None:
    stop_clock(page)
    with service.stage.paused(PAUSE_STEP):
        draw(page, steps=STEPS)
        wait_for_step(page, PAUSE_STEP)
        link.cut()
        expect(page.locator(".running .status")).to_contain_text("Joining again")
        for pause in PAUSES_MS[:2]:
            with page.expect_event("requestfailed", is_rejoin):
                page.clock.run_for(pause)
        link.mend()
        with page.expect_response(lambda response: is_rejoin(response.request)):
            page.clock.run_for(PAUSES_MS[2])
    wait_for_pictures(page, 1)


@pytest.mark.long
def test_joining_again_is_given_up_in_the_end_and_says_what_to_do(
    page: Page, link: NetworkLink, service: PausedDrawing
) -> None:
    stop_clock(page)
    with service.stage.paused(PAUSE_STEP):
        draw(page, steps=STEPS)
        wait_for_step(page, PAUSE_STEP)
        link.cut()
        expect(page.locator(".running .status")).to_contain_text("Joining again")
        for pause in PAUSES_MS:
            with page.expect_event("requestfailed", is_rejoin):
                page.clock.run_for(pause)
        failed = page.locator(".failed .status")
        expect(failed).to_contain_text("The service can't be reached.")
        expect(failed).to_contain_text("try again when it is back")
        link.mend()
    page.get_by_role("button", name="Try again").click()
    wait_for_pictures(page, 1)


def test_a_service_that_goes_away_is_named_and_is_found_again(
    page: Page, link: NetworkLink
) -> None:
    page.get_by_label("What do you want to see?").fill("a red heart")
    stop_clock(page)
    page.reload()
    expect(page.locator("html[data-service=ready]")).to_have_count(1)
    link.cut()
    page.clock.run_for(LOOK_MS)
    expect(page.locator("#service-text")).to_have_text(
        "The service can't be reached. Trying again…"
    )
    draw(page)
    expect(page.locator(".failed .status")).to_contain_text("Your settings are kept")
    link.mend()
    page.clock.run_for(LOOK_MS)
    expect(page.locator("#service-text")).to_have_text("demo is ready")
    page.get_by_role("button", name="Try again").click()
    wait_for_pictures(page, 1)


def test_a_description_that_never_comes_leaves_the_health_on_the_page_as_it_is(
    open_page: OpenPage, serve: Serve
) -> None:
    conductor = FakeConductor()
    page = open_page(serve(make_api(conductor, Ledger(None), SMALL)))
    stop_clock(page)
    silent: list[Route] = []
    page.route("**/openapi.json", lambda route: silent.append(route))
    page.reload()
    expect(page.locator("html[data-service=ready]")).to_have_count(1)
    conductor.current_health = replace(conductor.current_health, status=HealthStatus.DRAINING)
    page.clock.run_for(LOOK_MS)
    expect(page.locator("html[data-service=draining]")).to_have_count(1)
    silent[0].abort()
    page.unroute("**/openapi.json")
    page.clock.run_for(LOOK_MS)
    expect(page.locator("#sampler option[value=heun]")).to_be_attached()


@pytest.mark.long
def test_a_description_that_never_comes_is_given_up_and_requested_again(
    open_page: OpenPage, serve: Serve
) -> None:
    page = open_page(serve(make_api(FakeConductor(), Ledger(None), SMALL)))
    silent: list[Route] = []
    page.route("**/openapi.json", lambda route: silent.append(route))
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/openapi.json")):
        page.reload()
    page.unroute("**/openapi.json")
    expect(page.locator("#sampler option[value=heun]")).to_be_attached(timeout=2 * LOOK_MS)


def test_a_browser_without_a_network_says_so_at_once(page: Page) -> None:
    page.context.set_offline(True)
    expect(page.locator("html[data-service=offline]")).to_have_count(1)
    page.context.set_offline(False)
    expect(page.locator("html[data-service=ready]")).to_have_count(1)
    draw(page)
    wait_for_pictures(page, 1)


def test_a_service_that_comes_back_with_keys_is_described_anew(
    open_page: OpenPage, serve: Serve
) -> None:
    open_to_all = serve(make_api(FakeConductor(), Ledger(None), SMALL))
    policy = AccessPolicy(keys=digests(["sesame"]))
    keyed = serve(make_api(FakeConductor(), Ledger(None), SMALL, policy=policy))
    with NetworkLink(open_to_all) as link:
        page = open_page(link.address)
        stop_clock(page)
        page.reload()
        expect(page.locator("html[data-service=ready]")).to_have_count(1)
        expect(page.get_by_role("button", name="API key")).to_be_hidden()
        link.cut()
        page.clock.run_for(LOOK_MS)
        expect(page.locator("html[data-service=offline]")).to_have_count(1)
        link.lead_to(keyed)
        link.mend()
        page.clock.run_for(LOOK_MS)
        expect(page.get_by_role("button", name="API key")).to_be_visible()
