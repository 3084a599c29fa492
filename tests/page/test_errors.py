"""What the page says when the service refuses: what happened, and what to do."""

import pytest
from playwright.sync_api import Page, expect

from serve_app.core.errors import (
    DeadlineExceeded,
    Draining,
    LedgerAway,
    Loading,
    OutOfMemory,
    Overloaded,
    SafetyBlock,
)
from serve_app.core.service.info import Health, HealthStatus
from serve_app.deployments.ledger import Ledger
from tests.page.actions import STAR, draw, fill, press_draw, stop_clock, wait_for_pictures
from tests.page.fixture_types import OpenPage, Serve
from tests.page.small_service import SMALL
from tests.support.api import make_api
from tests.support.fake_conductor import FakeConductor


@pytest.fixture
def conductor() -> FakeConductor:
    return FakeConductor()


@pytest.fixture
def page(open_page: OpenPage, serve: Serve, conductor: FakeConductor) -> Page:
    """Return the page of a service whose answers a test chooses."""
    return open_page(serve(make_api(conductor, Ledger(None), SMALL)))


def test_a_busy_service_is_counted_down_and_tried_again(
    page: Page, conductor: FakeConductor
) -> None:
    conductor.refusal = Overloaded("the queue is full", retry_after=7)
    stop_clock(page)
    draw(page)
    status = page.locator(".running .status")
    expect(status).to_have_text("The service is busy. Trying again in 7 s")
    page.clock.run_for(1000)
    expect(status).to_have_text("The service is busy. Trying again in 6 s")
    expect(page.locator(".waiting .frame")).to_have_attribute("data-left", "6")
    page.clock.run_for(5000)
    expect(status).to_have_text("The service is busy. Trying again in 1 s")
    assert conductor.refused == 1
    conductor.refusal = None
    page.clock.run_for(1000)
    wait_for_pictures(page, 1)


def test_a_service_that_can_not_write_down_its_jobs_is_tried_again(
    page: Page, conductor: FakeConductor
) -> None:
    conductor.refusal = LedgerAway("the ledger can't be reached")
    conductor.owed = 2.0  # seconds
    stop_clock(page)
    draw(page)
    expect(page.locator(".waiting .status")).to_contain_text("can't write down its jobs")
    conductor.refusal = None
    page.clock.run_for(10_000)
    wait_for_pictures(page, 1)


def test_who_waits_for_a_busy_service_may_cancel(page: Page, conductor: FakeConductor) -> None:
    conductor.refusal = Overloaded("the queue is full", retry_after=30)
    draw(page)
    expect(page.locator(".running .status")).to_contain_text("Trying again in")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".tile")).to_have_count(0)
    assert conductor.refused == 1


def test_a_wait_that_is_too_long_is_left_to_the_person(
    page: Page, conductor: FakeConductor
) -> None:
    conductor.refusal = Overloaded("the queue is full", retry_after=300)
    draw(page)
    failed = page.locator(".failed .status")
    expect(failed).to_have_text("The service is busy. Try again in about 5 min.")
    conductor.refusal = None
    page.get_by_role("button", name="Try again").click()
    wait_for_pictures(page, 1)


def test_a_service_that_starts_says_so_and_draws_when_it_has(
    page: Page, conductor: FakeConductor
) -> None:
    stop_clock(page)
    conductor.refusal = Loading("the base stage has no replica yet")
    reason = "the base stage loads its model"
    conductor.current_health = Health(HealthStatus.LOADING, reason, {"base": 0}, 0.0)
    conductor.owed = 2.0  # seconds
    page.reload()
    expect(page.locator("#service-text")).to_have_text(f"Starting: {reason}")
    draw(page)
    expect(page.locator(".running .status")).to_contain_text("The service is still starting.")
    conductor.refusal = None
    conductor.current_health = Health(HealthStatus.READY, "", {"base": 1}, 0.0)
    page.clock.run_for(10_000)
    wait_for_pictures(page, 1)
    expect(page.locator("#service-text")).to_have_text("sdxl-base-1.0 is ready")


def test_a_failure_says_what_to_do_and_can_be_tried_again(
    page: Page, conductor: FakeConductor
) -> None:
    failures = {
        "The safety filter refuses this. Describe something else.": SafetyBlock("refused"),
        "Try again, or ask for fewer steps or pictures.": DeadlineExceeded("late"),
        "Try again, or choose a smaller size.": OutOfMemory("full"),
        "Its log says more about request": RuntimeError("boom"),
    }
    for count, (words, error) in enumerate(failures.items(), start=1):
        conductor.refusal = error
        draw(page)
        expect(page.locator(".failed .status")).to_contain_text(words)
        conductor.refusal = None
        page.get_by_role("button", name="Try again").click()
        wait_for_pictures(page, count)


def test_a_failed_picture_is_announced_and_can_be_removed(
    page: Page, conductor: FakeConductor
) -> None:
    conductor.refusal = SafetyBlock("refused")
    page.evaluate(
        """() => {
          window.alerts = [];  // what elements that are alerts already were given
          const note = (changes) => changes.forEach(({ type, attributeName, target }) => {
            if (attributeName === "role" || target.role === "alert") {
              window.alerts.push(type);
            }
          });
          const observer = new MutationObserver(note);
          observer.observe(document.getElementById("tiles"), {
            subtree: true, childList: true, attributes: true, attributeFilter: ["role"],
          });
        }"""
    )
    draw(page)
    expect(page.locator(".failed .status")).to_have_role("alert")
    assert page.evaluate("window.alerts") == ["attributes", "childList"]
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#empty")).to_be_visible()


def test_a_service_that_is_about_to_stop_is_named(page: Page, conductor: FakeConductor) -> None:
    conductor.current_health = Health(HealthStatus.DRAINING, "stopping", {"base": 1}, 0.0)
    conductor.refusal = Draining("the service stops")
    conductor.owed = 500.0  # seconds, which is too long to wait by itself
    page.reload()
    expect(page.locator("#service-text")).to_have_text("The service is about to stop")
    draw(page)
    expect(page.locator(".failed .status")).to_contain_text("Try again when it is back.")


def test_every_wrong_field_is_marked_and_named_as_the_form_calls_it(page: Page) -> None:
    fill(page, steps=999)
    page.get_by_label("Guidance").fill("77")
    press_draw(page)
    error = page.locator("#composer-error")
    expect(error).to_contain_text("Please change what is marked.")
    expect(error.get_by_text("Steps: must be between 1 and 150")).to_be_visible()
    expect(error.get_by_text("Guidance: must be between 0 and 20")).to_be_visible()
    expect(page.locator("[aria-invalid=true]")).to_have_count(2)
    expect(page.locator(".tile")).to_have_count(0)
    draw(page)
    page.get_by_label("Guidance").fill("5")
    press_draw(page)
    wait_for_pictures(page, 1)
    expect(error).to_be_hidden()
    expect(page.locator("[aria-invalid]")).to_have_count(0)


def test_a_request_that_is_wrong_leaves_no_timer_behind(page: Page) -> None:
    stop_clock(page)
    page.evaluate(
        """() => {
          window.seen = new Set();
          new MutationObserver(() => {
            document.querySelectorAll(".running .status").forEach((note) => window.seen.add(note));
          }).observe(document.getElementById("tiles"), { childList: true });
        }"""
    )
    draw(page, steps=999, images=2)
    expect(page.locator("#composer-error")).to_be_visible()
    page.evaluate("window.seen.forEach((note) => { note.textContent = 'left alone'; })")
    page.clock.run_for(3000)
    texts = page.evaluate("[...window.seen].map((note) => note.textContent)")
    assert texts == ["left alone"] * 2


def test_what_is_shown_speaks_the_language_that_is_chosen_later(
    page: Page, conductor: FakeConductor
) -> None:
    fill(page, steps=999)
    page.get_by_label("Seed").fill("1.5")
    press_draw(page)
    error = page.locator("#composer-error")
    expect(error).to_contain_text("Please change what is marked.")
    page.locator("#language").select_option("es")
    expect(error.locator("p")).to_have_text(
        "El servicio no puede dibujar esto. Cambia lo que está marcado."
    )
    expect(error.locator("li")).to_have_text(
        ["Semilla: debe ser un número entero", "Pasos: debe estar entre 1 y 150"]
    )
    page.locator("#language").select_option("en")
    page.get_by_label("Seed").fill("1")
    conductor.refusal = SafetyBlock("refused")
    draw(page)
    expect(page.locator(".failed .status")).to_contain_text("The safety filter")
    conductor.refusal = Overloaded("the queue is full", retry_after=90)
    stop_clock(page)
    draw(page)
    expect(page.locator(".waiting .status")).to_contain_text("The service is busy.")
    page.locator("#language").select_option("es")
    expect(page.locator(".failed .status")).to_contain_text("El filtro de seguridad")
    expect(page.locator(".failed button")).to_have_text(["Reintentar", "Quitar"])
    expect(page.locator(".waiting .status")).to_contain_text("El servicio está ocupado.")
    expect(page.locator(".waiting button")).to_have_text("Cancelar")
    expect(page.locator(".waiting progress")).to_have_attribute("aria-label", "Dibujar")


def test_drawing_without_a_prompt_asks_for_one(page: Page, conductor: FakeConductor) -> None:
    press_draw(page)
    expect(page.get_by_label("What do you want to see?")).to_be_focused()
    assert not conductor.calls
    page.get_by_label("What do you want to see?").fill(STAR)
    press_draw(page)
    wait_for_pictures(page, 2)
