"""Errors about checkpoints name the setting that chose them, and a command that fixes it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.config.checkpoints import (
    DEMO_NOTICE,
    DOWNLOAD_COMMAND,
    ENV_VAR,
    check_pair,
    check_safety_checker,
    inspect,
)
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError, ConfigsError
from serve_app.runtime.checkpoints import acceptance
from serve_app.runtime.checkpoints.acceptance import Acceptance
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from tests.support.checkpoints import with_scheduler
from tests.support.single_files import to_single_file


@pytest.mark.parametrize("stage", Stage)
def test_a_folder_that_is_not_whole_is_downloaded_again(tmp_path: Path, stage: Stage) -> None:
    with pytest.raises(CheckpointError) as refused:
        inspect(tmp_path, stage)
    error = refused.value
    assert error.subject == f"{ENV_VAR[stage]}={tmp_path}"
    assert error.problem == "lacks model_index.json"
    assert error.remedy == f"Get it whole with: {DOWNLOAD_COMMAND[stage]}"


def test_another_setting_may_have_named_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        inspect(tmp_path, Stage.BASE, setting="models.fox.path")
    assert refused.value.subject == f"models.fox.path={tmp_path}"


def test_no_command_repairs_a_single_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        inspect(tmp_path / "fox.safetensors", Stage.BASE)
    assert (refused.value.problem, refused.value.remedy) == ("does not exist", "")


@pytest.mark.parametrize(
    ("stage", "remedy"),
    [(Stage.BASE, "name it in MODEL_CONFIG_DIR"), (Stage.REFINER, "name that instead")],
)
def test_a_single_file_asks_for_a_folder_of_configs(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path, stage: Stage, remedy: str
) -> None:
    file = to_single_file(checkpoints[stage].folder, tmp_path / "tune.safetensors")
    with pytest.raises(ConfigsError) as refused:
        inspect(file, stage)
    assert remedy in refused.value.remedy
    assert refused.value.remedy.endswith(DOWNLOAD_COMMAND[stage])
    with pytest.raises(ConfigsError) as refused:
        inspect(file, stage, configs=tmp_path)
    assert refused.value.remedy == f"Get a whole folder with: {DOWNLOAD_COMMAND[stage]}"


def test_a_refiner_of_another_noise_schedule_is_refused(
    checkpoints: dict[Stage, Checkpoint],
) -> None:
    base, refiner = checkpoints[Stage.BASE], checkpoints[Stage.REFINER]
    check_pair(base, refiner)
    with pytest.raises(CheckpointError, match="noise schedule") as refused:
        check_pair(base, replace(refiner, scheduler=CheckpointScheduler(NoiseConfig())))
    assert refused.value.subject == f"MODEL_REFINER_CHECKPOINT_DIR={refiner.path}"


def test_a_missing_safety_checker_is_named_with_its_download(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        check_safety_checker(tmp_path)
    error = refused.value
    assert (error.subject, error.problem) == (
        f"SAFETY_CHECKER_DIR={tmp_path}",
        "lacks config.json",
    )
    assert error.remedy.endswith(f"--local-dir {tmp_path}")


def test_the_demo_s_notice_says_how_to_get_sdxl() -> None:
    assert "MODEL_CHECKPOINT_DIR" in DEMO_NOTICE
    assert "Stable Diffusion XL" in DEMO_NOTICE


@pytest.mark.parametrize("name", ["stabilityai/sdxl-turbo", "playgroundai/playground-v2.5-1024px"])
def test_a_repository_where_a_path_is_wanted_is_named_with_its_download(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(CheckpointError, match="does not exist") as refused:
        inspect(tmp_path / name, Stage.BASE)
    assert refused.value.remedy.endswith(f"with: aura download {name}")
    with pytest.raises(CheckpointError) as refused:
        inspect(tmp_path / "sdxl", Stage.BASE)
    assert refused.value.remedy == f"Get it whole with: {DOWNLOAD_COMMAND[Stage.BASE]}"


def test_a_misspelt_path_of_a_checkpoint_is_corrected(tmp_path: Path) -> None:
    for folder in ("models/fox-v2", "models/fox", "tunes"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models/fox-v2/model_index.json").write_text("{}")
    (tmp_path / "tunes/owl.safetensors").touch()
    for wrong, right in (
        ("models/fox-v3", "models/fox-v2"),
        ("model/foxv2", "models/fox-v2"),
        ("tunes/owls.safetensors", "tunes/owl.safetensors"),
    ):
        with pytest.raises(CheckpointError) as refused:
            inspect(tmp_path / wrong, Stage.BASE)
        assert refused.value.remedy == f"Did you mean {tmp_path / right}?"


def test_a_folder_where_downloads_go_is_no_owner_of_a_repository(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        inspect(tmp_path / "models/sdxl-bse", Stage.BASE)
    assert refused.value.remedy == f"Get it whole with: {DOWNLOAD_COMMAND[Stage.BASE]}"


@pytest.mark.parametrize(
    ("folder", "remedy"),
    [
        ("fox", "Download that model again, or choose another"),
        ("sdxl-base", "Get it whole with: aura download sdxl"),
        (f"models--a--fox/snapshots/{'7' * 40}", "Get it whole with: aura download a/fox"),
        ("models--a--fox", "Get it whole with: aura download a/fox"),
    ],
)
def test_a_model_that_is_not_stock_sdxl_is_not_replaced_by_it(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path, folder: str, remedy: str
) -> None:
    is_repository = folder == "models--a--fox"
    path = tmp_path / folder / ("snapshots/1" if is_repository else "")
    shutil.copytree(checkpoints[Stage.BASE].folder, path)
    (path / "acceptance.json").unlink(missing_ok=True)
    (path / "unet/config.json").unlink()
    with pytest.raises(CheckpointError, match="lacks unet/config") as refused:
        inspect(tmp_path / folder, Stage.BASE)
    assert refused.value.remedy == remedy


def test_a_download_that_is_not_whole_is_repeated(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints[Stage.BASE].folder, tmp_path / "mine"))
    acceptance.write(folder, Acceptance("a/fox", "c0ffee", "mit", "", "2026-01-01"))
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError) as refused:
        inspect(folder, Stage.BASE)
    assert refused.value.remedy == "Get it whole with: aura download a/fox"


def test_a_remedy_of_the_reader_is_kept(tmp_path: Path) -> None:
    (tmp_path / "models--a--b").mkdir()
    with pytest.raises(CheckpointError, match="is a cache of the model hub") as refused:
        inspect(tmp_path, Stage.BASE)
    assert refused.value.remedy == f"Name one of its folders, as {tmp_path}/models--a--b"
    assert refused.value.subject == f"MODEL_CHECKPOINT_DIR={tmp_path}"


def test_a_scheduler_that_is_not_supported_is_no_reason_to_download_again(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path
) -> None:
    flow = "FlowMatchEulerDiscreteScheduler"
    folder = with_scheduler(checkpoints[Stage.BASE].folder, tmp_path / "flow", flow, {})
    with pytest.raises(CheckpointError, match=f"has the scheduler class {flow}") as refused:
        inspect(folder, Stage.BASE)
    assert refused.value.remedy.endswith(f"or change {folder}/scheduler/scheduler_config.json")
