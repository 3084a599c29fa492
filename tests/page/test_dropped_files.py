"""A file that is dropped on the page brings its settings; what can't be had here is named."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, Page, expect

from serve_app.core.diffusion.extensions import LORA
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.service.info import ExtensionInfo
from serve_app.deployments.ledger import Ledger
from tests.page.actions import (
    STAR,
    download_first,
    draw,
    drop,
    open_advanced,
    press_draw,
    wait_for_pictures,
)
from tests.page.fixture_types import OpenPage, Serve
from tests.page.small_service import SMALL
from tests.support.api import make_api
from tests.support.fake_conductor import FakeConductor
from tests.support.http_server import serving

TIMES = "\N{MULTIPLICATION SIGN}"
INFO = replace(SMALL, extensions=(ExtensionInfo(LORA, "ink", SMALL.model_names),))
A1111 = """a lighthouse in the fog, <lora:ink:0.65>
watercolour
Negative prompt: photo, people
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 123456, Size: 192x256, \
Model hash: 31e35c80fc, Model: sdxl-base-1.0, Lora hashes: "ink: 5b3a2c, oil: 7", Version: v1.6"""
FOREIGN = """a fox <lora:oil:1.2> <lora:ink:0.4:1> in the snow
Steps: 20, Sampler: Restart, Schedule type: Beta, CFG scale: 7, Seed: 1, Size: 1536x1024, \
Model: dreamshaper"""


@pytest.fixture
def conductor() -> FakeConductor:
    return FakeConductor()


@pytest.fixture
def page(open_page: OpenPage, serve: Serve, conductor: FakeConductor) -> Page:
    """Return the page of a service with one model and one LoRA."""
    page = open_page(serve(make_api(conductor, Ledger(None), INFO)))
    page.locator(".lora").wait_for(state="attached")
    page.locator("#sampler option[value=heun]").wait_for(state="attached")
    return page


@pytest.fixture(scope="module")
def shared(browser: Browser) -> Iterator[Page]:
    """Yield a page for tests that leave nothing behind but what the form says."""
    with serving(make_api(FakeConductor(), Ledger(None), INFO)) as address:
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.locator("html[data-service=ready]").wait_for()
        yield page
        context.close()
    assert not errors


def picture(**texts: str) -> bytes:
    """Return a PNG with text chunks."""
    info, file = PngInfo(), BytesIO()
    for keyword, text in texts.items():
        info.add_text(keyword, text)  # as A1111 does: iTXt where Latin-1 is not enough
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def test_a_picture_by_a1111_brings_all_its_settings(page: Page, conductor: FakeConductor) -> None:
    drop(page, picture(parameters=A1111), "00012.png")
    expect(page.get_by_label("What do you want to see?")).to_have_value(
        "a lighthouse in the fog, \nwatercolour"
    )
    expect(page.get_by_label("What should not be there")).to_have_value("photo, people")
    expect(page.get_by_label("ink: weight")).to_have_value("0.65")
    expect(page.locator("#composer-error")).to_be_hidden()
    expect(page.locator(".toast")).to_have_text("Settings taken over")
    press_draw(page)
    wait_for_pictures(page, 1)
    (spec,) = conductor.specs
    assert (spec.steps, spec.guidance, spec.seed) == (25, 6.5, 123456)
    assert (spec.width, spec.height, spec.sampler) == (192, 256, Sampler.DPMPP_2M_KARRAS)
    assert [(ref.name, ref.weight) for ref in spec.extensions] == [("ink", 0.65)]
    assert spec.negative_prompt == "photo, people"


def test_what_this_service_does_not_have_is_named(page: Page, conductor: FakeConductor) -> None:
    drop(page, picture(parameters=FOREIGN), "fox.png")
    note = page.locator("#composer-error")
    expect(note.locator("p")).to_have_text("Taken over, except:")
    expect(note.locator("li")).to_have_text(
        [
            "the sampler Restart Beta is not available here, so the model's own is used",
            "the model dreamshaper is not available here, so this service's own is used",
            f"1536 {TIMES} 1024 pixels can't be drawn here, so the nearest aspect ratio is used",
            "the LoRA oil is not available here",
        ]
    )
    expect(page.get_by_role("radio", name="3:2")).to_be_checked()
    press_draw(page)
    wait_for_pictures(page, 1)
    (spec,) = conductor.specs
    assert (spec.prompt, spec.steps, spec.sampler) == ("a fox in the snow", 20, Sampler.EULER)
    assert [(ref.name, ref.weight) for ref in spec.extensions] == [("ink", 0.4)]
    expect(note).to_be_hidden()


def test_every_sampler_is_understood_as_this_service_writes_it_down(page: Page) -> None:
    lines = {
        f"Steps: 9, Sampler: {sampler.definition.a1111_name}, "
        f"Schedule type: {sampler.spacing.a1111_name}, Seed: 1": sampler.value
        for sampler in Sampler
    }
    understood = page.evaluate(
        """async (lines) => {
          const { requestOfInfotext } = await import(new URL("static/page/infotext.js", location));
          return lines.map((line) => requestOfInfotext(`a fox\\n${line}`).sampler);
        }""",
        list(lines),
    )
    assert understood == list(lines.values())


def test_a_prompt_in_another_script_is_read(page: Page) -> None:
    drop(
        page, picture(parameters="富士山, 水彩画\nSteps: 12, Sampler: Euler a, Seed: 5"), "fuji.png"
    )
    expect(page.get_by_label("What do you want to see?")).to_have_value("富士山, 水彩画")
    expect(page.get_by_label("Sampler")).to_have_value("euler_a")


def test_a_file_that_says_nothing_is_named_and_changes_nothing(page: Page) -> None:
    page.get_by_label("What do you want to see?").fill(STAR)
    jpeg = BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    files = {"png": picture(), "jpeg": jpeg.getvalue(), "plain": b"no picture at all"}
    for count, (kind, content) in enumerate(files.items(), start=1):
        drop(page, content, "file", f"image/{kind}")
        expect(page.locator(".toast", has_text="no usable settings")).to_have_count(count)
    expect(page.get_by_label("What do you want to see?")).to_have_value(STAR)


def test_text_is_dropped_into_the_prompt_as_in_any_field(page: Page) -> None:
    is_left_to_the_field = page.get_by_label("What do you want to see?").evaluate(
        """field => {
          const data = new DataTransfer();
          data.setData("text/plain", "a fox");
          const init = { dataTransfer: data, bubbles: true, cancelable: true };
          return field.dispatchEvent(new DragEvent("drop", init));
        }"""
    )
    assert is_left_to_the_field
    drop(page, b"no picture", "note.txt", "text/plain")
    expect(page.locator(".toast")).to_have_count(1)  # of the file alone


@pytest.mark.parametrize(
    "record",
    [
        {"request": {"prompt": "x", "loras": 5}},
        {"request": {"prompt": "x", "loras": [None]}},
        {"request": {"prompt": ["x"]}},
        {"request": {"prompt": "x", "steps": {"a": 1}, "guidanceInterval": 3}},
        {"request": "x"},
        None,
    ],
    ids=str,
)
def test_a_damaged_record_is_named_and_changes_nothing(shared: Page, record: object) -> None:
    shared.get_by_label("What do you want to see?").fill(STAR)
    open_advanced(shared)
    shared.get_by_label("Seed").fill("77")
    drop(shared, picture(aura=json.dumps(record)), "damaged.png")
    toast = shared.locator(".toast")
    expect(toast).to_contain_text("no usable settings")
    toast.evaluate("note => note.remove()")
    expect(shared.get_by_label("What do you want to see?")).to_have_value(STAR)
    expect(shared.get_by_label("Seed")).to_have_value("77")


def test_the_time_for_a_line_grows_no_faster_than_the_line(shared: Page) -> None:
    short, long = shared.evaluate(
        """async () => {
          const { requestOfInfotext } = await import(new URL("static/page/infotext.js", location));
          return [10_000, 160_000].map((length) => {
            const text = `a hare\\nSteps: 21, ${"a".repeat(length)}`;
            const times = [1, 2, 3].map(() => {
              const start = performance.now();
              requestOfInfotext(text);
              return performance.now() - start;
            });
            return Math.min(...times);
          });
        }"""
    )
    assert long < 80 * max(short, 0.1)  # 16 times as long; a quadratic pattern takes 256 times


def test_what_the_form_does_not_show_of_a_picture_is_kept_and_named(
    page: Page, conductor: FakeConductor
) -> None:
    request = {"prompt": STAR, "imageCount": 1, "steps": 9, "guidanceInterval": [0.3, 5]}
    drop(page, picture(aura=json.dumps({"route": "/generate", "request": request})), "star.png")
    expect(page.locator("#kept")).to_have_text("Also kept: guidanceInterval 0.3, 5")
    press_draw(page)
    wait_for_pictures(page, 1)
    assert conductor.specs[0].guidance_interval == (0.3, 5.0)
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#kept")).to_be_hidden()


def test_a_refined_picture_says_that_its_base_is_not_here(page: Page) -> None:
    record = {"route": "/refine", "request": {"refinePrompt": "warmer", "imageCount": 1}}
    drop(page, picture(aura=json.dumps(record)), "warm.png")
    expect(page.get_by_label("What do you want to see?")).to_have_value("warmer")
    expect(page.locator("#composer-error")).to_contain_text("it was refined from another picture")


def test_a_picture_of_this_page_comes_back_as_it_was(
    page: Page, conductor: FakeConductor, tmp_path: Path
) -> None:
    draw(page, steps=12)
    wait_for_pictures(page, 1)
    file = download_first(page, tmp_path)
    page.get_by_role("button", name="Reset").click()
    drop(page, file.read_bytes(), file.name)
    expect(page.locator(".toast", has_text="Settings taken over")).to_be_visible()
    press_draw(page)
    wait_for_pictures(page, 2)
    first, second = conductor.specs
    assert first == second
