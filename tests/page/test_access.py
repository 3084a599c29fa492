"""Who may draw: the API key that the page asks for, and the terms that it shows."""

from dataclasses import replace

import pytest
from playwright.sync_api import Page, Request, expect

from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy, digests
from tests.page.actions import draw, wait_for_pictures
from tests.page.fixture_types import OpenPage, Serve
from tests.page.small_service import SMALL
from tests.support.api import make_api
from tests.support.browser import REMOTE_NAME
from tests.support.fake_conductor import FakeConductor

KEY = "sesame-opens-it"
KEYED = AccessPolicy(keys=digests([KEY]))
TERMS = replace(SMALL, terms_required=True)


@pytest.fixture
def keyed(open_page: OpenPage, serve: Serve) -> Page:
    """Return the page of a service with a key."""
    return open_page(serve(make_api(FakeConductor(), Ledger(None), SMALL, policy=KEYED)))


def enter_key(page: Page, key: str) -> None:
    """Type a key into the dialog, and send it."""
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key", exact=True).last.fill(key)
    dialog.get_by_role("button", name="Use").click()


def test_the_page_asks_for_a_key_and_goes_on_with_it(keyed: Page) -> None:
    requests: list[Request] = []
    keyed.on("request", lambda request: requests.append(request))
    draw(keyed)
    expect(keyed.get_by_role("dialog")).to_contain_text("This service asks for an API key.")
    enter_key(keyed, "wrong")
    expect(keyed.get_by_role("alert")).to_contain_text("does not know that key")
    enter_key(keyed, KEY)
    wait_for_pictures(keyed, 1)
    expect(keyed.get_by_role("dialog")).to_be_hidden()
    posted = [request for request in requests if request.method == "POST"]
    sent = [request.headers.get("authorization") for request in posted]
    assert sent == [None, "Bearer wrong", f"Bearer {KEY}"]
    assert not [request.url for request in requests if KEY in request.url or "wrong" in request.url]


def test_a_key_is_kept_in_the_tab_alone(keyed: Page) -> None:
    draw(keyed)
    enter_key(keyed, KEY)
    wait_for_pictures(keyed, 1)
    stored = "storage => Object.values(storage)"
    assert keyed.evaluate(f"({stored})(sessionStorage)") == [KEY]
    assert keyed.evaluate(f"({stored})(localStorage)") == []
    assert keyed.evaluate("document.cookie") == ""
    keyed.reload()
    draw(keyed)
    wait_for_pictures(keyed, 2)
    other = keyed.context.new_page()
    other.goto(keyed.url)
    draw(other)
    expect(other.get_by_role("dialog")).to_be_visible()


def test_a_key_can_be_entered_beforehand_and_forgotten(keyed: Page) -> None:
    keyed.get_by_role("button", name="API key").click()
    enter_key(keyed, KEY)
    draw(keyed)
    wait_for_pictures(keyed, 1)
    keyed.get_by_role("button", name="API key").click()
    keyed.get_by_role("button", name="Forget").click()
    draw(keyed)
    expect(keyed.get_by_role("dialog")).to_be_visible()


def test_a_key_that_no_header_can_hold_is_refused_at_once(keyed: Page) -> None:
    keyed.get_by_role("button", name="API key").click()
    enter_key(keyed, f"{KEY}\N{HORIZONTAL ELLIPSIS}")
    expect(keyed.get_by_role("alert")).to_contain_text("does not know that key")
    field = keyed.get_by_role("dialog").get_by_label("API key", exact=True).last
    expect(field).to_be_focused()
    assert keyed.evaluate("sessionStorage.length") == 0
    enter_key(keyed, KEY)
    draw(keyed)
    wait_for_pictures(keyed, 1)


def test_a_kept_key_that_no_header_can_hold_is_as_none(keyed: Page) -> None:
    """The field of /docs keeps its key in the same place."""
    keyed.evaluate("sessionStorage.setItem('aura-serve.api-key', 'sesame\u2026')")
    keyed.reload()
    expect(keyed.locator("html[data-service=ready]")).to_have_count(1)
    draw(keyed)
    expect(keyed.get_by_role("dialog")).to_contain_text("This service asks for an API key.")


def test_without_storage_a_key_lasts_as_long_as_the_page(keyed: Page) -> None:
    keyed.add_init_script(
        """for (const name of ["sessionStorage", "localStorage"]) {
          Object.defineProperty(window, name, {
            get() { throw new DOMException("blocked", "SecurityError"); },
          });
        }"""
    )
    keyed.reload()
    for count in (1, 2):
        draw(keyed)
        if count == 1:
            enter_key(keyed, KEY)
        wait_for_pictures(keyed, count)
    keyed.get_by_role("button", name="API key").click()
    keyed.get_by_role("button", name="Forget").click()
    draw(keyed)
    expect(keyed.get_by_role("dialog")).to_be_visible()


def test_who_enters_no_key_reads_what_to_do(keyed: Page) -> None:
    draw(keyed)
    expect(keyed.get_by_role("dialog")).to_be_visible()
    keyed.keyboard.press("Escape")
    expect(keyed.locator(".failed .status")).to_contain_text("Enter it under “API key”")


def test_jobs_that_are_refused_together_ask_for_a_key_once(keyed: Page) -> None:
    draw(keyed)
    expect(keyed.get_by_role("dialog")).to_be_visible()
    keyed.locator("#composer").evaluate("form => form.requestSubmit()")
    expect(keyed.locator(".tile.running")).to_have_count(2)
    enter_key(keyed, KEY)
    wait_for_pictures(keyed, 2)
    expect(keyed.get_by_role("dialog")).to_be_hidden()


def test_a_service_without_keys_says_why_other_machines_may_not_draw(
    open_page: OpenPage, serve: Serve
) -> None:
    address = serve(make_api(FakeConductor(), Ledger(None), SMALL))
    page = open_page(address, extra_http_headers={"X-Forwarded-For": "203.0.113.9"})
    expect(page.locator("html[data-service=ready]")).to_have_count(1)
    draw(page)
    expect(page.locator(".failed .status")).to_contain_text("Whoever runs it can set API_KEYS.")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_the_page_draws_under_a_name_that_browsers_do_not_trust(
    open_page: OpenPage, serve: Serve
) -> None:
    """By plain HTTP from another machine, as on a phone, where some functions are missing."""
    policy = AccessPolicy(hosts=(REMOTE_NAME,))
    address = serve(make_api(FakeConductor(), Ledger(None), SMALL, policy=policy))
    page = open_page(address.replace("127.0.0.1", REMOTE_NAME))
    assert not page.evaluate("isSecureContext")
    draw(page)
    wait_for_pictures(page, 1)


def test_terms_are_shown_before_the_first_picture_and_accepting_goes_on(
    open_page: OpenPage, serve: Serve
) -> None:
    page = open_page(serve(make_api(FakeConductor(), Ledger(None), TERMS)))
    draw(page)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("please read and accept the terms")
    for license in SMALL.licenses:
        expect(dialog.get_by_role("heading", name=license.model)).to_be_visible()
    page.get_by_role("button", name="I accept these terms").click()
    wait_for_pictures(page, 1)
    draw(page)
    wait_for_pictures(page, 2)
    expect(dialog).to_be_hidden()


def test_who_declines_the_terms_reads_what_to_do(open_page: OpenPage, serve: Serve) -> None:
    page = open_page(serve(make_api(FakeConductor(), Ledger(None), TERMS)))
    draw(page)
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(page.locator(".failed .status")).to_contain_text("Try again to read and accept them.")
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("button", name="I accept these terms").click()
    wait_for_pictures(page, 1)


def test_licences_and_attribution_can_be_read_at_any_time(page: Page) -> None:
    page.get_by_role("button", name="Licences and attribution").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Pictures here are made by demo, demo-refiner")
    expect(dialog.get_by_role("heading", name="demo", exact=True)).to_be_visible()
    expect(dialog.get_by_role("button", name="I accept these terms")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_the_demo_says_so_and_how_to_get_real_sdxl(page: Page) -> None:
    banner = page.get_by_role("complementary", name="Notice")
    expect(banner).to_contain_text("This is the demo")
    expect(banner.locator("code")).to_have_text("aura download")


def test_real_sdxl_has_no_banner(keyed: Page) -> None:
    expect(keyed.locator("#service-text")).to_have_text("sdxl-base-1.0 is ready")
    expect(keyed.get_by_role("complementary", name="Notice")).to_be_hidden()
