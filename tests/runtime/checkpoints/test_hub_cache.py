"""Paths into the cache of the model hub, as huggingface_hub lays it out."""

import shutil
from pathlib import Path

import pytest

from serve_app.core.diffusion.model_defaults import ModelDefaults
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.checkpoints.hub_cache import repository_of, snapshot_folder
from serve_app.runtime.checkpoints.licenses import license_of
from tests.support.checkpoints import in_hub_cache
from tests.support.single_files import to_single_file

COMMIT, OTHER = "7" * 40, "8" * 40
TURBO = "stabilityai/sdxl-turbo"


@pytest.fixture(scope="module")
def demo(checkpoints: dict[Stage, Checkpoint]) -> Path:
    return checkpoints[Stage.BASE].folder


@pytest.fixture
def turbo(demo: Path, tmp_path: Path) -> Path:
    """Return the folder of a repository in a cache of its own."""
    return in_hub_cache(demo, tmp_path / "hub", TURBO, COMMIT)


@pytest.mark.parametrize("below", ["", "snapshots", f"snapshots/{COMMIT}"])
def test_a_repository_in_the_cache_is_known_by_its_name(turbo: Path, below: str) -> None:
    checkpoint = inspect(turbo / below, Stage.BASE)
    assert (checkpoint.name, checkpoint.repository) == ("sdxl-turbo", TURBO)
    assert checkpoint.defaults == ModelDefaults(4, 1.0, Sampler.EULER_A_TRAILING)
    assert checkpoint.folder == turbo / "snapshots" / COMMIT
    assert license_of(checkpoint).name.startswith("sai-nc-community")


def test_a_link_to_a_snapshot_is_known_by_the_repositorys_name(turbo: Path) -> None:
    link = turbo.parent.parent / "mine"
    link.symlink_to(turbo / "snapshots" / COMMIT)
    assert inspect(link, Stage.BASE).name == "sdxl-turbo"


def test_a_single_file_in_the_cache_is_known_by_both_names(demo: Path, turbo: Path) -> None:
    file = to_single_file(demo, turbo / "snapshots" / COMMIT / "model_8step.safetensors")
    checkpoint = inspect(file, Stage.BASE, configs=turbo)
    assert (checkpoint.name, checkpoint.repository) == ("model_8step", TURBO)
    assert checkpoint.defaults.sampler is Sampler.EULER_A_TRAILING
    assert checkpoint.folder == turbo / "snapshots" / COMMIT


def test_refs_main_chooses_among_snapshots(demo: Path, turbo: Path) -> None:
    in_hub_cache(demo, turbo.parent, TURBO, OTHER)
    assert snapshot_folder(turbo).name == OTHER
    (turbo / "refs/main").write_text(f"{COMMIT}\n")
    assert snapshot_folder(turbo).name == COMMIT


def test_without_refs_main_the_only_snapshot_counts(demo: Path, turbo: Path) -> None:
    shutil.rmtree(turbo / "refs")
    assert snapshot_folder(turbo).name == COMMIT
    in_hub_cache(demo, turbo.parent, TURBO, OTHER)
    (turbo / "refs/main").write_text("9" * 40)
    with pytest.raises(CheckpointError, match=f"2 snapshots of {TURBO}, and refs/main") as refused:
        inspect(turbo, Stage.BASE)
    assert refused.value.remedy == f"Name one, as {turbo}/snapshots/{COMMIT}"


def test_a_download_that_did_not_begin_is_named(turbo: Path) -> None:
    shutil.rmtree(turbo / "snapshots")
    with pytest.raises(CheckpointError, match=f"holds no snapshot of {TURBO}") as refused:
        inspect(turbo, Stage.BASE)
    assert refused.value.remedy == f"Get it with: aura download {TURBO}"


@pytest.mark.parametrize("home", ["hub", "."])
def test_the_cache_itself_is_refused_with_what_it_holds(demo: Path, turbo: Path, home: str) -> None:
    in_hub_cache(demo, turbo.parent, "tianweiy/DMD2", OTHER)
    with pytest.raises(CheckpointError, match=f"holds {TURBO}, tianweiy/DMD2") as refused:
        inspect(turbo.parent.parent / home, Stage.BASE)
    assert refused.value.remedy == f"Name one of its folders, as {turbo}"


def test_a_folder_of_single_files_names_them(demo: Path, tmp_path: Path) -> None:
    file = to_single_file(demo, tmp_path / "sd_xl_turbo.safetensors", without=("vae",))
    with pytest.raises(
        CheckpointError, match=r"lacks model_index.json; it holds sd_xl_turbo\.s"
    ) as e:
        inspect(tmp_path, Stage.BASE)
    assert e.value.remedy == f"Name a single file instead, as {file}"


def test_other_paths_stay_as_they_are(demo: Path, tmp_path: Path) -> None:
    missing = tmp_path / "models--a--b"
    for path in (demo, tmp_path, missing, tmp_path / "none"):
        assert snapshot_folder(path) == path
        assert repository_of(path) == ""
    whole = Path(shutil.copytree(demo, tmp_path / "models--mine"))  # a folder that is only named so
    assert snapshot_folder(whole) == whole
