"""Screenshots of the page's main states, over the demo: `python -m tests.page.screenshots`.

Everything on them is drawn by the demo, with seeds of their own. Without an argument the images of
the documentation are made again; a folder as the argument gets all widths in both themes.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from serve_app import __version__
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import Overloaded
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, demo_folder
from tests.page.actions import DRAWING_MS, fill, open_advanced, press_draw, wait_for_pictures
from tests.support.browser import browser
from tests.support.local_stage import cpu_stage
from tests.support.paused_drawing import PausedDrawing

FOLDER = Path(__file__).parents[2] / "docs" / "screenshots"
MAX_BYTES = 150_000
RETRY_SECONDS = 24
_COLOURS = 255
_STEPS, _PAUSE_STEP = 60, 34
_DESKTOP, _TABLET, _PHONE = (1440, 900), (820, 1180), (390, 844)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture of the board: what is asked for, and how."""

    prompt: str
    aspect: str
    seed: int


BOARD = (  # the first is drawn first, and so ends up last
    Drawing("a large yellow star in the centre on a black background", "1:1", 7),
    Drawing("a large green heart in the centre on a white background", "3:4", 5),
    Drawing("a large white cross in the centre on a green background", "16:9", 3),
    Drawing("a large red heart in the centre", "1:1", 4),
    Drawing("a large orange triangle in the centre on a blue background", "3:2", 2),
    Drawing("a large pink circle in the centre on a purple background", "2:3", 9),
)


class Stand:
    """The page with a full board, and the service behind it."""

    def __init__(self, page: Page, service: PausedDrawing) -> None:
        self.page = page
        self.service = service

    def draw_board(self) -> None:
        """Draw the pictures of the board, one after the other."""
        for count, drawing in enumerate(BOARD, start=1):
            self.fill(drawing)
            press_draw(self.page)
            wait_for_pictures(self.page, count)

    def fill(self, drawing: Drawing, images: int = 1, steps: int | None = 16) -> None:
        """Fill in the form for a picture."""
        fill(self.page, drawing.prompt, steps, images)
        self.page.locator(f".aspect input[value='{drawing.aspect}']").check(force=True)
        self.page.get_by_label("Seed").fill(str(drawing.seed))

    def tidy(self) -> None:
        """Leave the form as somebody has it who just began, and scroll up."""
        open_advanced(self.page)
        self.page.get_by_role("button", name="Reset").click()
        self.page.locator("#advanced").evaluate("details => { details.open = false; }")
        self.page.evaluate("window.scrollTo(0, 0)")
        self.page.evaluate("document.activeElement?.blur()")
        self.page.mouse.move(0, 0)


@contextmanager
def _start(stand: Stand) -> Iterator[None]:
    stand.page.locator("#empty .idea").first.wait_for()
    yield
    stand.draw_board()


@contextmanager
def _board(stand: Stand) -> Iterator[None]:
    stand.tidy()
    yield


@contextmanager
def _drawing(stand: Stand) -> Iterator[None]:
    page = stand.page
    with stand.service.stage.paused(_PAUSE_STEP):
        stand.fill(Drawing("a red circle next to a blue square", "1:1", 21), images=2, steps=_STEPS)
        press_draw(page)
        page.wait_for_function(
            "part => [...document.querySelectorAll('.running progress')]"
            ".filter(bar => bar.value >= part).length === 2",
            arg=_PAUSE_STEP / _STEPS,
            timeout=DRAWING_MS,
        )
        stand.tidy()
        yield
        page.get_by_role("button", name="Cancel").first.click()
        expect(page.locator(".running")).to_have_count(0)


@contextmanager
def _drafts(stand: Stand) -> Iterator[None]:
    page = stand.page
    stand.fill(Drawing("a yellow star on a purple background", "1:1", 31))
    page.get_by_role("button", name="Four drafts").click()
    expect(page.locator(".tile .badge")).to_have_count(4, timeout=DRAWING_MS)
    stand.tidy()
    page.locator(".tile").first.hover()
    yield
    for _ in range(4):
        _delete_first(page)


@contextmanager
def _viewer(stand: Stand) -> Iterator[None]:
    page = stand.page
    count = page.locator(".tile .open").count()
    page.get_by_role("button", name=f"Open picture: {BOARD[3].prompt}").click()
    page.get_by_label("What should change?").fill("on a yellow background")
    page.get_by_label("How much is made anew").fill("0.8")
    page.get_by_role("dialog").get_by_role("button", name="Refine").click()
    wait_for_pictures(page, count + 1)
    page.locator(".tile .open").first.click()
    page.locator(".compare img.after").wait_for()
    yield
    page.keyboard.press("Escape")
    _delete_first(page)


@contextmanager
def _countdown(stand: Stand) -> Iterator[None]:
    page = stand.page
    stand.service.conductor.refusal = Overloaded("busy", retry_after=RETRY_SECONDS)
    stand.fill(Drawing("a large green star in the centre on a yellow background", "3:2", 1))
    press_draw(page)
    expect(page.locator(".waiting .status")).to_contain_text(f"{RETRY_SECONDS - 1} s")
    stand.tidy()
    yield
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".running")).to_have_count(0)
    stand.service.conductor.refusal = None


def _delete_first(page: Page) -> None:
    count = page.locator(".tile .open").count()
    page.locator(".tile .open").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    wait_for_pictures(page, count - 1)
    expect(page.locator(".toast")).to_have_count(1)
    page.locator(".toast").evaluate("note => note.remove()")


STATES = {
    "start": _start,  # first, since it fills the board
    "board": _board,
    "drawing": _drawing,
    "drafts": _drafts,
    "viewer": _viewer,
    "countdown": _countdown,
}


@dataclass(frozen=True, slots=True)
class Shot:
    """An image of the documentation: a state of the page in one size and theme."""

    name: str
    state: str
    size: tuple[int, int]
    theme: str
    visible: str  # a selector of what the state shows
    top: str = ""  # a selector of what is scrolled to


SHOTS = (
    Shot("drawing", "drawing", _DESKTOP, "light", ".running .preview"),
    Shot("board", "board", _DESKTOP, "light", ".tile .open"),
    Shot("board-dark", "board", _DESKTOP, "dark", ".tile .open"),
    Shot("drafts", "drafts", _DESKTOP, "light", ".tile .badge"),
    Shot("viewer", "viewer", _DESKTOP, "dark", ".compare .line"),
    Shot("countdown", "countdown", _DESKTOP, "light", ".waiting .status"),
    Shot("phone", "drawing", _PHONE, "light", ".running .preview", "#board-title"),
    Shot("tablet", "board", _TABLET, "dark", ".tile .open"),
)
ALL = tuple(
    Shot(f"{state}-{size[0]}-{theme}", state, size, theme, "body")
    for state in STATES
    for size in (_DESKTOP, _TABLET, _PHONE)
    for theme in ("light", "dark")
)


def take(
    opened: Browser,
    replica: StageReplica,
    folder: Path,
    shots: tuple[Shot, ...] = SHOTS,
    check: Callable[[Shot, Page], None] = lambda shot, page: None,
) -> None:
    """Write the screenshots as PNG files; `check` sees the page at each of them."""
    service = PausedDrawing(replica, __version__)
    with service.serving() as address:
        context = opened.new_context(locale="en-GB", reduced_motion="reduce")
        page = context.new_page()
        page.goto(address)
        page.locator("html[data-service=ready]").wait_for()
        stand = Stand(page, service)
        for state, enter in STATES.items():
            wanted = [shot for shot in shots if shot.state == state]
            page.set_viewport_size({"width": _DESKTOP[0], "height": _DESKTOP[1]})
            with enter(stand):
                for shot in wanted:
                    _write(page, shot, folder / f"{shot.name}.png")
                    check(shot, page)
        context.close()


def _write(page: Page, shot: Shot, file: Path) -> None:
    width, height = shot.size
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(
        color_scheme="dark" if shot.theme == "dark" else "light", reduced_motion="reduce"
    )
    page.locator(shot.visible).first.wait_for()
    if shot.top:
        page.locator(shot.top).evaluate("element => element.scrollIntoView()")
    page.evaluate("Promise.all([...document.images].map(image => image.decode().catch(() => {})))")
    with Image.open(BytesIO(page.screenshot())) as image:
        few = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        few.save(file, optimize=True)


def main(arguments: list[str]) -> None:
    """Write the screenshots into a folder: those of the documentation, or all of them."""
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    sources = [ModelSource(FOLDER_NAMES[stage], demo_folder(stage), stage=stage) for stage in Stage]
    replica = StageReplica(cpu_stage(sources, max_loaded_models=2, max_batch_images=4))
    try:
        with browser() as opened:
            take(opened, replica, folder, ALL if arguments else SHOTS)
    finally:
        replica.close()


if __name__ == "__main__":
    main(sys.argv[1:])
