"""What people do on the page: draw, watch, cancel, pick, refine, compare, and come back."""

from pathlib import Path

import pytest
from axe_playwright_python.base import AxeResults
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Dialog, Page, expect

from serve_app.deployments.stage_replica import StageReplica

STAR = "a large yellow star on a black background"
MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"


def draw(page: Page, prompt: str = STAR, steps: int = 30, images: int = 1) -> None:
    page.get_by_label("What do you want to see?").fill(prompt)
    page.get_by_label("Pictures").fill(str(images))
    page.locator("#advanced").evaluate("details => { details.open = true; }")
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_role("button", name="Draw", exact=True).click()


def pictures(page: Page) -> int:
    return page.locator(".tile .open").count()


def test_a_picture_comes_with_previews_and_is_there_after_a_reload(page: Page) -> None:
    page.evaluate(
        """() => {
          window.previews = new Set();
          new MutationObserver(() => {
            for (const image of document.querySelectorAll(".running .preview[src]")) {
              window.previews.add(image.src);
            }
          }).observe(document.body, { subtree: true, attributes: true, childList: true });
        }"""
    )
    draw(page, steps=150)
    expect(page.locator(".running progress")).to_be_visible()
    expect(page.locator(".tile .open")).to_have_count(1, timeout=60_000)
    assert page.evaluate("window.previews.size") >= 3  # two previews at least, and the picture
    kept = page.evaluate(
        """async () => {
          const load = (src) => Object.assign(new Image(), { src }).decode();
          const loads = await Promise.allSettled([...window.previews].map(load));
          return loads.filter(({ status }) => status === "fulfilled").length;
        }"""
    )
    assert kept == 0  # blobs of previews stay in memory as long as they have an address
    page.reload()
    expect(page.locator(".tile .open")).to_have_count(1)
    expect(page.get_by_role("button", name=f"Open picture: {STAR}")).to_be_visible()


def test_a_picture_that_is_cancelled_leaves_the_engine_within_a_step(
    page: Page, replica: StageReplica
) -> None:
    before = replica._engine.stats()
    draw(page, steps=150)
    page.locator(".running .preview[src]").wait_for()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".tile")).to_have_count(0)
    while (after := replica._engine.stats()).positions:
        page.wait_for_timeout(20)
    assert after.cancelled == before.cancelled + 1
    assert after.steps - before.steps < 150


def test_drafts_are_drawn_and_the_chosen_is_promoted(page: Page) -> None:
    page.get_by_label("What do you want to see?").fill(STAR)
    page.locator("#advanced").evaluate("details => { details.open = true; }")
    page.get_by_label("Guidance").fill("5")
    page.get_by_role("button", name="Four drafts").click()
    expect(page.locator(".tile .badge")).to_have_count(4, timeout=60_000)
    page.locator(".tile .open").first.click()
    seed = page.locator(".facts dd").nth(1).inner_text()
    page.get_by_role("dialog").get_by_role("button", name="Draw in full").click()
    expect(page.locator(".tile .open")).to_have_count(5, timeout=60_000)
    page.locator(".tile .open").first.click()
    assert page.locator(".facts dd").nth(1).inner_text() == seed
    assert page.locator(".facts dd").nth(2).inner_text() == "30"  # the service's own
    assert page.locator(".facts dd").nth(3).inner_text() == "5"  # what was chosen for the picture


def test_a_picture_is_refined_and_compared_with_what_it_was(page: Page) -> None:
    draw(page)
    expect(page.locator(".tile .open")).to_have_count(1, timeout=60_000)
    page.locator(".tile .open").click()
    page.get_by_label("What should change?").fill("a red circle")
    page.get_by_role("dialog").get_by_role("button", name="Refine").click()
    expect(page.locator(".tile .open")).to_have_count(2, timeout=60_000)
    page.locator(".tile .open").first.click()
    slider = page.get_by_label("Before and after")
    slider.focus()
    for _ in range(10):
        slider.press("ArrowRight")
    compare = page.locator(".compare")
    assert compare.evaluate("box => box.style.getPropertyValue('--at')") == "60%"


def test_a_dropped_picture_brings_its_settings(page: Page, tmp_path: Path) -> None:
    draw(page, steps=12)
    expect(page.locator(".tile .open")).to_have_count(1, timeout=60_000)
    page.locator(".tile").hover()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    page.get_by_label("What do you want to see?").fill("")
    page.evaluate(
        """async ([bytes, name]) => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(bytes)], name, { type: "image/png" }));
          window.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }""",
        [list(file.read_bytes()), file.name],
    )
    expect(page.get_by_label("What do you want to see?")).to_have_value(STAR)
    expect(page.get_by_label("Steps")).to_have_value("12")
    assert page.get_by_label("Seed").input_value() != ""


def test_everything_is_done_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the prompt
    page.keyboard.type(STAR)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".tile .open")).to_have_count(2, timeout=60_000)
    page.locator(".tile .open").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_the_page_speaks_spanish(page: Page) -> None:
    page.get_by_label("Language").select_option("es")
    expect(page.get_by_role("button", name="Dibujar", exact=True)).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "es"
    page.reload()
    expect(page.get_by_label("¿Qué quieres ver?")).to_be_visible()


def test_markup_in_a_prompt_is_text(page: Page) -> None:
    dialogs: list[str] = []

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    draw(page, prompt=MARKUP, steps=4)
    expect(page.locator(".tile .open")).to_have_count(1, timeout=60_000)
    page.locator(".tile .open").click()
    expect(page.locator("#viewer-title")).to_have_text(MARKUP)
    assert page.locator("#viewer-title *").count() == 0
    assert not dialogs


def test_a_wrong_field_is_named_and_has_the_focus(page: Page) -> None:
    draw(page, steps=999)
    error = page.locator("#composer-error")
    expect(error).to_contain_text("Steps")
    expect(page.get_by_label("Steps")).to_be_focused()
    assert pictures(page) == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_no_rule_of_accessibility_is_violated(page: Page, theme: str, width: int) -> None:
    page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 900})
    axe = Axe()
    draw(page, steps=4)
    expect(page.locator(".tile .open")).to_have_count(1, timeout=60_000)
    for found in (axe.run(page), _with_viewer(page, axe)):
        assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def _with_viewer(page: Page, axe: Axe) -> AxeResults:
    page.locator(".tile .open").click()
    return axe.run(page)
