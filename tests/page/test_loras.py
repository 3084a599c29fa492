"""LoRAs in the advanced panel: listed, weighed, sent, kept with the picture, and chosen again."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, Request, expect

from serve_app.config.catalog import find_checkpoints, service_info
from serve_app.config.settings import Settings
from serve_app.core.diffusion.extensions import LORA
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.info import ExtensionInfo
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.graph import extension_sources
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.page.actions import (
    download_first,
    draw,
    open_advanced,
    press_draw,
    stop_clock,
    wait_for_pictures,
)
from tests.page.fixture_types import OpenPage, Serve
from tests.page.small_service import SMALL
from tests.support.api import make_api
from tests.support.fake_conductor import FakeConductor
from tests.support.http_server import serving
from tests.support.local_stage import LocalStage, cpu_stage
from tests.support.lora_files import lora_file

MODELS_FILE = """
loras:
  ink: {path: ink.safetensors}
  chalk: {path: chalk.safetensors, weight: 0.5}
"""
WITH_LORAS = replace(
    SMALL, extensions=tuple(ExtensionInfo(LORA, name, SMALL.model_names) for name in ("ink", "oil"))
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of the demo with two real LoRAs."""
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("ink", "chalk")):
        lora_file(demo_folder(Stage.BASE), folder / f"{name}.safetensors", seed=seed)
    (folder / "models.yaml").write_text(MODELS_FILE)
    settings = Settings.read({"MODELS_FILE": str(folder / "models.yaml")}, folder)
    catalog = find_checkpoints(settings)
    replica = StageReplica(
        cpu_stage(
            [ModelSource("demo", demo_folder(Stage.BASE))],
            extensions=extension_sources(catalog),
            max_loaded_extensions=2,
        )
    )
    info = service_info(settings, replace(catalog, refiner=None), "cpu")
    stage = LocalStage(replica)
    with serving(make_api(Conductor(stage, None, info.models), Ledger(None), info)) as address:
        yield address
    replica.close()


def choose(page: Page, name: str, weight: str) -> None:
    """Switch a LoRA on, and give it a weight."""
    open_advanced(page)
    page.get_by_role("checkbox", name=name).check()
    page.get_by_label(f"{name}: weight").fill(weight)


def is_generation(request: Request) -> bool:
    """Return whether a request asks for pictures."""
    return request.method == "POST" and request.url.endswith("/generate")


def loras_in(request: Request) -> Any:
    """Return the LoRAs of a request; None if it names none."""
    return json.loads(request.post_data or "").get("loras")


def test_a_lora_acts_at_its_weight_and_is_kept_with_the_picture(page: Page, tmp_path: Path) -> None:
    open_advanced(page)
    expect(page.locator(".lora .check")).to_have_text(["ink", "chalk"])
    expect(page.get_by_label("ink: weight")).to_be_disabled()
    page.get_by_label("Seed").fill("3")
    with page.expect_request(is_generation) as plain:
        draw(page)
    wait_for_pictures(page, 1)
    assert loras_in(plain.value) is None
    without = Image.open(download_first(page, tmp_path)).tobytes()
    choose(page, "ink", "0.65")
    expect(page.locator(".lora output").first).to_have_text("0.65")
    with page.expect_request(is_generation) as drawn:
        press_draw(page)
    wait_for_pictures(page, 2)
    assert loras_in(drawn.value) == [{"name": "ink", "weight": 0.65}]
    with Image.open(download_first(page, tmp_path)) as picture:
        assert picture.tobytes() != without
        assert json.loads(picture.info["aura"])["request"]["loras"] == [
            {"name": "ink", "weight": 0.65}
        ]
    page.reload()
    expect(page.locator("#loras [value=ink]")).not_to_be_checked()
    page.locator(".tile .open").first.click()
    page.get_by_role("button", name="Use this again").click()
    expect(page.locator("#advanced")).to_have_attribute("open", "")
    expect(page.get_by_role("checkbox", name="ink")).to_be_checked()
    expect(page.get_by_label("ink: weight")).to_have_value("0.65")
    expect(page.get_by_role("checkbox", name="chalk")).not_to_be_checked()
    with page.expect_request(is_generation) as again:
        press_draw(page)
    assert loras_in(again.value) == [{"name": "ink", "weight": 0.65}]
    wait_for_pictures(page, 3)


def test_chosen_loras_stay_while_the_service_changes_and_the_language(
    open_page: OpenPage, serve: Serve
) -> None:
    conductor = FakeConductor()
    page = open_page(serve(make_api(conductor, Ledger(None), WITH_LORAS)))
    choose(page, "oil", "-0.5")
    page.get_by_label("Sampler").select_option("heun")
    stop_clock(page)
    conductor.current_health = replace(conductor.current_health, owed_seconds=77.0)
    page.reload()
    choose(page, "oil", "-0.5")
    conductor.current_health = replace(conductor.current_health, owed_seconds=78.0)
    with page.expect_response(lambda response: response.url.endswith("/health")):
        page.clock.run_for(5000)
    expect(page.get_by_role("checkbox", name="oil")).to_be_checked()
    page.get_by_label("Language").select_option("es")
    expect(page.get_by_label("oil: peso")).to_have_value("-0.5")
    expect(page.locator(".lora output").last).to_have_text("-0,50")
    page.get_by_role("button", name="Volver a lo que elige el servicio").click()
    expect(page.get_by_role("checkbox", name="oil")).not_to_be_checked()


def test_a_service_without_loras_offers_none(open_page: OpenPage, serve: Serve) -> None:
    page = open_page(serve(make_api(FakeConductor(), Ledger(None), SMALL)))
    open_advanced(page)
    expect(page.get_by_label("Steps")).to_be_visible()
    expect(page.get_by_role("group", name="LoRAs")).to_be_hidden()
