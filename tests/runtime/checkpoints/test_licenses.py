"""Licences of checkpoints, from a licence file, a model card, or the model's family."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import REPOSITORY, Checkpoint, inspect
from serve_app.runtime.checkpoints.licenses import RAIL, RESTRICTIONS, license_of, license_on_card
from tests.support.checkpoints import with_scheduler
from tests.support.single_files import to_single_file

PLAYGROUND = "playground-v2dot5-community (assumed from its noise)"
COSXL = "cosxl-nc-community (assumed from its noise)"


@pytest.fixture
def sdxl(tmp_path: Path, checkpoints: dict[Stage, Checkpoint]) -> Checkpoint:
    return replace(checkpoints[Stage.BASE], name="sdxl-base", folder=tmp_path)


def test_a_folder_without_a_licence_is_assumed_to_be_sdxl_and_says_so(sdxl: Checkpoint) -> None:
    terms = license_of(sdxl)
    assert terms.name == f"{RAIL} (assumed: its folder does not say)"
    assert "stable-diffusion-xl-base-1.0" in terms.url
    assert terms.restrictions == RESTRICTIONS
    refiner = license_of(replace(sdxl, stage=Stage.REFINER))
    assert "stable-diffusion-xl-refiner-1.0" in refiner.url


def test_the_licence_text_of_the_folder_is_passed_on(sdxl: Checkpoint) -> None:
    (sdxl.folder / "LICENSE.md").write_text("CreativeML Open RAIL++-M License\n…")
    terms = license_of(sdxl)
    assert (terms.name, terms.restrictions) == (RAIL, RESTRICTIONS)
    assert terms.text.startswith("CreativeML")


def test_a_fine_tune_has_the_licence_that_its_card_names(sdxl: Checkpoint) -> None:
    (sdxl.folder / "README.md").write_text("---\nlicense: openrail++\n---\n")
    assert license_of(sdxl).name == RAIL
    (sdxl.folder / "README.md").write_text("---\nlicense: other\nlicense_name: sai-nc\n---\n")
    terms = license_of(sdxl)
    assert (terms.name, terms.restrictions) == ("sai-nc", ())


@pytest.mark.parametrize("stage", Stage)
def test_the_demo_is_free_and_says_so(checkpoints: dict[Stage, Checkpoint], stage: Stage) -> None:
    terms = license_of(checkpoints[stage])
    assert (terms.name, terms.restrictions) == ("apache-2.0", ())
    assert "Apache License" in terms.text


@pytest.mark.parametrize("stage", Stage)
def test_sdxl_s_own_licence_is_known_whatever_a_mirror_s_card_says(stage: Stage) -> None:
    terms = license_on_card(REPOSITORY[stage], "mit", "https://mirror.example")
    assert (terms.name, terms.restrictions) == (RAIL, RESTRICTIONS)
    assert terms.url == f"https://huggingface.co/{REPOSITORY[stage]}/blob/main/LICENSE.md"


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("sdxl-turbo", "sai-nc-community (assumed from its name)"),
        ("DMD2", "CC BY-NC-SA 4.0 (non-commercial) (assumed from its name)"),
        ("bigASP_dmd2_4step", "CC BY-NC-SA 4.0 (non-commercial) (assumed from its name)"),
        ("pcm-sdxl", "MIT (assumed from its name)"),
        ("playground-v2.5-1024px-aesthetic", "playground-v2dot5-community (assumed from its name)"),
        ("cosxl", "cosxl-nc-community (assumed from its name)"),
    ],
)
def test_a_published_model_has_its_licence_where_its_folder_is_silent(
    sdxl: Checkpoint, name: str, terms: str
) -> None:
    assert license_of(replace(sdxl, name=name)).name == terms
    assert license_of(replace(sdxl, repository=f"somebody/{name}")).name == terms
    assert license_of(replace(sdxl, name=name), "Ink Licence").name == "Ink Licence"
    (sdxl.folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert license_of(replace(sdxl, name=name)).name == "mit"


@pytest.mark.parametrize(
    ("tensors", "terms"),
    [
        ({"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}, PLAYGROUND),
        ({"edm_vpred.sigma_max": torch.tensor(120.0)}, COSXL),
        ({"v_pred": torch.zeros(1)}, f"{RAIL} (assumed: the file does not say)"),
    ],
)
def test_a_renamed_file_has_the_licence_of_the_model_that_its_tensors_mark(
    tmp_path: Path, tensors: dict[str, torch.Tensor], terms: str
) -> None:
    demo = demo_folder(Stage.BASE)
    file = to_single_file(demo, tmp_path / "fox.safetensors", extra=tensors)
    checkpoint = inspect(file, Stage.BASE, configs=demo)
    assert license_of(checkpoint).name == terms
    assert license_of(checkpoint, "Ink Licence").name == "Ink Licence"


@pytest.mark.parametrize(
    ("name", "options", "terms"),
    [
        ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5}, PLAYGROUND),
        (
            "EDMEulerScheduler",
            {"sigma_data": 1.0, "sigma_max": 120.0, "prediction_type": "v_prediction"},
            COSXL,
        ),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, "apache-2.0"),
    ],
)
def test_a_renamed_folder_has_the_licence_of_the_model_that_its_noise_is_of(
    tmp_path: Path, name: str, options: dict[str, Any], terms: str
) -> None:
    folder = with_scheduler(demo_folder(Stage.BASE), tmp_path / "fox", name, options)
    if name.startswith("EDM"):
        for file in (*folder.glob("LICENSE*"), *folder.glob("README*")):
            file.unlink()
    assert license_of(inspect(folder, Stage.BASE)).name == terms
