"""The page over a service whose images are made in the cloud."""

from playwright.sync_api import expect

from serve_app.deployments.ledger import Ledger
from tests.page.actions import draw, wait_for_pictures
from tests.page.fixture_types import OpenPage, Serve
from tests.support.api import make_api
from tests.support.cloud_caller import info_of
from tests.support.fake_conductor import FakeConductor


def test_the_banner_says_that_pictures_go_to_google_where_the_cloud_is_the_default(
    serve: Serve, open_page: OpenPage
) -> None:
    page = open_page(serve(make_api(FakeConductor(), Ledger(None), info_of(is_default=True))))
    expect(page.locator("#banner")).to_contain_text("sent to Google")
    draw(page, steps=None)
    wait_for_pictures(page, 1)
    page.locator(".tile .open").first.click()
    dialog = page.locator("#viewer")
    expect(dialog).to_contain_text("gemini-nano-banana-2.1")
    expect(dialog).not_to_contain_text("Seed")
    expect(dialog).to_contain_text("are sent to Google's cloud")


def test_there_is_no_banner_beside_a_local_model(serve: Serve, open_page: OpenPage) -> None:
    page = open_page(serve(make_api(FakeConductor(), Ledger(None), info_of(is_default=False))))
    expect(page.locator("#service-text")).to_have_text("sdxl-base-1.0 is ready")
    expect(page.locator("#banner")).to_be_hidden()
