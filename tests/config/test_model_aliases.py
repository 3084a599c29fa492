"""What requests may call a configured model, as the service knows it."""

from pathlib import Path

import pytest

from serve_app.config.catalog import find_checkpoints, service_info
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.info import ServiceInfo
from serve_app.runtime.checkpoints import acceptance
from serve_app.runtime.checkpoints.acceptance import Acceptance
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.support.single_files import to_single_file

HUB_NAME = "stabilityai/stable-diffusion-xl-base-1.0"


def copied(folder: Path, stage: Stage = Stage.BASE) -> Path:
    """Put the demo's files below another name; links will do."""
    folder.mkdir(parents=True)
    for file in demo_folder(stage).iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def service(**settings: object) -> ServiceInfo:
    read = Settings.read({name: str(value) for name, value in settings.items()})
    return service_info(read, find_checkpoints(read), "cpu")


def test_a_folder_is_known_by_its_path_in_every_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tmp_path / "models" / "sdxl-base")
    link = tmp_path / "current"
    link.symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    info = service(MODEL_CHECKPOINT_DIR="./models/sdxl-base")
    for text in (
        "sdxl-base",
        "models/sdxl-base",
        "./models/sdxl-base",
        "models//sdxl-base/",
        "~/models/sdxl-base",
        str(folder),
        f"{folder}/",
        HUB_NAME,
    ):
        assert info.find_model(text) == info.default_model, text
    for text in (
        "",
        "/",
        ".",
        "..",
        "models",
        "models/../models/sdxl-base",
        "other/sdxl-base",
        "SDXL-BASE",
        HUB_NAME.upper(),
        "/etc/passwd",
        "\0",
        "/" * 10_000_000,
    ):
        assert info.find_model(text) is None, text[:20]
    linked = service(MODEL_CHECKPOINT_DIR=link)
    for text in (str(link), str(folder), "current", "sdxl-base"):
        assert linked.find_model(text) == linked.default_model, text


def test_the_record_of_a_download_names_the_repository(tmp_path: Path) -> None:
    folder = copied(tmp_path / "mine")
    acceptance.write(folder, Acceptance("someone/painting-xl", "1", "MIT", "", "now"))
    info = service(MODEL_CHECKPOINT_DIR=folder)
    assert info.find_model("someone/painting-xl") == info.default_model
    assert info.find_model(HUB_NAME) is None


def test_the_refiner_is_known_in_the_same_ways(tmp_path: Path) -> None:
    base = copied(tmp_path / "sdxl-base")
    refiner = copied(tmp_path / "sdxl-refiner", Stage.REFINER)
    info = service(MODEL_CHECKPOINT_DIR=base, MODEL_REFINER_CHECKPOINT_DIR=refiner)
    for text in ("sdxl-refiner", f"{refiner}/", "stabilityai/stable-diffusion-xl-refiner-1.0"):
        assert info.is_refiner(text), text
    for text in ("sdxl-base", str(base), HUB_NAME, "", "refiner"):
        assert not info.is_refiner(text), text


def test_a_listed_model_is_known_as_its_file_writes_it(tmp_path: Path) -> None:
    (tmp_path / "tunes").mkdir()
    file = to_single_file(demo_folder(Stage.BASE), tmp_path / "tunes" / "painting_v2.safetensors")
    models = tmp_path / "models.yaml"
    models.write_text("models: {painting: {path: tunes/painting_v2.safetensors}}")
    info = service(MODEL_CHECKPOINT_DIR=demo_folder(Stage.BASE), MODELS_FILE=models)
    for text in (
        "painting",
        "tunes/painting_v2.safetensors",
        "painting_v2.safetensors",
        str(file),
    ):
        model = info.find_model(text)
        assert model is not None, text
        assert model.name == "painting"


def test_the_demo_answers_to_no_path() -> None:
    info = service()
    assert info.default_model.aliases == info.refiner_aliases == ()
    assert info.find_model(str(demo_folder(Stage.BASE))) is None
