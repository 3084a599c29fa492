"""What people do on the page, as steps of tests and of screenshots."""

from pathlib import Path

from playwright.sync_api import Page, expect

STAR = "a large yellow star on a black background"
DRAWING_MS = 60_000  # in which a picture must come, on a busy machine


def open_advanced(page: Page) -> None:
    """Unfold the advanced panel, if it is folded."""
    page.locator("#advanced").evaluate("details => { details.open = true; }")


def fill(page: Page, prompt: str = STAR, steps: int | None = 4, images: int = 1) -> None:
    """Fill in the form; `steps` None leaves them to the service."""
    page.get_by_label("What do you want to see?").fill(prompt)
    page.get_by_label("Pictures", exact=True).fill(str(images))
    open_advanced(page)
    page.get_by_label("Steps").fill("" if steps is None else str(steps))


def press_draw(page: Page) -> None:
    """Press the button that draws what the form says."""
    page.get_by_role("button", name="Draw", exact=True).click()


def draw(page: Page, prompt: str = STAR, steps: int | None = 4, images: int = 1) -> None:
    """Fill in the form and send it, without waiting for a picture."""
    fill(page, prompt, steps, images)
    press_draw(page)


def wait_for_pictures(page: Page, count: int) -> None:
    """Wait until the board has so many pictures that are done."""
    expect(page.locator(".tile .open")).to_have_count(count, timeout=DRAWING_MS)


def drop(page: Page, content: bytes, name: str, media_type: str = "image/png") -> None:
    """Drop a file on the page, as a person does from a folder."""
    page.evaluate(
        """([bytes, name, type]) => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(bytes)], name, { type }));
          window.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }""",
        [list(content), name, media_type],
    )


def download_first(page: Page, folder: Path) -> Path:
    """Save the newest picture of the board, and return its file."""
    page.locator(".tile").first.hover()
    button = page.locator(".tile").first.get_by_role("button", name="Download", exact=True)
    with page.expect_download() as download:
        button.click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file


def stop_clock(page: Page) -> None:
    """Let no time pass on the page but by `page.clock.run_for`; answers still come."""
    page.clock.install(time=0)
    page.clock.pause_at(1000)
