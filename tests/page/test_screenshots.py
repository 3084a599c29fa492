"""The screenshots of the documentation are made from the page as it is, and show its states."""

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from serve_app import __version__
from serve_app.deployments.stage_replica import StageReplica
from tests.page.screenshots import FOLDER, MAX_BYTES, SHOTS, Shot, take

COUNTS = {"drawing": 2, "board": 6, "drafts": 4, "viewer": 1, "countdown": 1}  # of what is visible


@pytest.mark.long
def test_every_state_is_on_its_screenshot(
    browser: Browser, replica: StageReplica, tmp_path: Path
) -> None:
    def check(shot: Shot, page: Page) -> None:
        states.append(shot.state)
        expect(page.locator("#version")).to_have_text(f"Aura Serve {__version__}")
        shown = page.locator(shot.visible)
        expect(shown).to_have_count(COUNTS[shot.state])
        expect(shown.first).to_be_in_viewport()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= shot.size[0], f"{shot.name} is {width} pixels wide"

    states: list[str] = []
    take(browser, replica, tmp_path, check=check)
    assert set(states) == COUNTS.keys()
    for shot in SHOTS:
        file = tmp_path / f"{shot.name}.png"
        assert file.stat().st_size < MAX_BYTES
        with Image.open(file) as image:
            assert image.size == shot.size
            colours = image.convert("RGB").getcolors(image.width * image.height)
        assert colours is not None
        assert len(colours) > 50, f"{shot.name} is nearly blank"
        most = max(count for count, _ in colours) / (shot.size[0] * shot.size[1])
        assert most < 0.75, f"{shot.name} is nearly of one colour"


def test_the_documentation_has_every_screenshot() -> None:
    for shot in SHOTS:
        file = FOLDER / f"{shot.name}.png"
        assert file.stat().st_size < MAX_BYTES
        with Image.open(file) as image:
            assert image.size == shot.size
