"""Checkpoint folders: refused in one line when incomplete, else read for what they say."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from serve_app.core.diffusion.model_defaults import ModelDefaults
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.checkpoint import (
    Checkpoint,
    inspect,
    is_pair,
    num_parameters,
    weight_plans,
)
from serve_app.runtime.checkpoints.safetensors_header import read_header

Damage = Callable[[Path], object]


@pytest.fixture
def base(checkpoints: dict[Stage, Checkpoint], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints[Stage.BASE].folder, tmp_path / "sdxl"))


def pickle_instead(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def pickle_in_disguise(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"PK\x03\x04" + bytes(99))


def file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def truncate(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def edit(name: str, **changes: object) -> Damage:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return change


BROKEN: dict[str, tuple[Damage, str]] = {
    "missing": (lambda f: shutil.rmtree(f), "does not exist"),
    "a file": (file_instead, "is not a folder"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "lacks model_index.json"),
    "bad index": (lambda f: (f / "model_index.json").write_text("{"), "unreadable model_index"),
    "a listed index": (lambda f: (f / "model_index.json").write_text("[]"), "unreadable model_ind"),
    "no unet": (edit("model_index.json", unet=[None, None]), "lacks unet in model_index.json"),
    "no vae folder": (lambda f: shutil.rmtree(f / "vae"), "lacks its folder vae"),
    "no weights": (
        lambda f: (f / "text_encoder/model.safetensors").unlink(),
        "lacks the weights of text_encoder",
    ),
    "a pickle": (pickle_instead, "holds a pickle in unet, where only safetensors are loaded"),
    "a disguise": (pickle_in_disguise, "which is no safetensors file inside"),
    "truncated": (truncate, "truncated unet/diffusion_pytorch_model.safetensors"),
    "inpainting": (
        edit("unet/config.json", in_channels=9),
        "has a unet/config.json whose in_channels must be 4, got 9: it is an inpainting or editing "
        "model, or no SDXL",
    ),
    "an LCM with its guidance scale embedded": (
        edit("unet/config.json", time_cond_proj_dim=256),
        "has a unet/config.json whose time_cond_proj_dim must be null, got 256: it takes its "
        "guidance scale as an embedding",
    ),
    "odd scheduler": (
        edit("scheduler/scheduler_config.json", beta_schedule="sigmoid"),
        "beta_schedule='sigmoid'",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_folder_is_refused_in_one_line(base: Path, name: str) -> None:
    damage, problem = BROKEN[name]
    damage(base)
    with pytest.raises(CheckpointError) as refused:
        inspect(base, Stage.BASE)
    error = refused.value
    assert (error.subject, error.remedy) == (str(base), "")
    assert problem in error.problem
    assert "\n" not in error.problem


def test_a_complete_folder_describes_itself(checkpoints: dict[Stage, Checkpoint]) -> None:
    base, refiner = checkpoints[Stage.BASE], checkpoints[Stage.REFINER]
    assert (base.name, base.native_size) == ("demo", 128)
    assert (base.requires_aesthetics_score, base.force_zeros_for_empty_prompt) == (False, True)
    assert (refiner.requires_aesthetics_score, refiner.force_zeros_for_empty_prompt) == (
        True,
        False,
    )
    assert base.noise_config.timestep_spacing == "leading"
    assert is_pair(base, refiner)


def test_a_distilled_model_is_recognized_by_name_origin_or_scheduler(base: Path) -> None:
    assert inspect(base, Stage.BASE).defaults == ModelDefaults()
    edit("model_index.json", _name_or_path="stabilityai/sdxl-turbo")(base)
    assert inspect(base, Stage.BASE).defaults.sampler is Sampler.EULER_A_TRAILING
    edit("model_index.json", _name_or_path="", scheduler=["diffusers", "LCMScheduler"])(base)
    assert inspect(base, Stage.BASE).defaults.sampler is Sampler.LCM
    edit("model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])(base)
    moved = base.rename(base.with_name("sdxl-lightning-4step"))
    assert inspect(moved, Stage.BASE).defaults.sampler is Sampler.EULER_TRAILING


def weight_files(folder: Path) -> set[str]:
    """Return how the names of the files that would be read end."""
    plans = weight_plans(inspect(folder, Stage.BASE)).values()
    files = {stored.file for plan in plans for stored in plan.stored}
    return {"".join(Path(file).suffixes) for file in files}


def test_half_precision_files_are_a_variant(base: Path) -> None:
    for weights in base.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert weight_files(base) == {".fp16.safetensors"}
    (weights,) = (base / "unet").glob("*.safetensors")
    shard = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
    names = read_header(weights.rename(weights.with_name(shard)), "").tensors
    index = {"weight_map": dict.fromkeys(names, shard)}
    for name in ("safetensors.index.fp16.json", "fp16.safetensors.index.json"):
        file = base / "unet" / f"diffusion_pytorch_model.{name}"
        file.write_text(json.dumps(index))
        assert ".fp16-00001-of-00001.safetensors" in weight_files(base)
        file.unlink()


def test_headers_give_the_number_of_parameters_that_would_be_loaded(base: Path) -> None:
    counts = num_parameters(inspect(base, Stage.BASE))
    for name, count in counts.items():
        (file,) = (base / name).glob("*.safetensors")
        assert count == sum(tensor.numel() for tensor in load_file(file).values())
    assert set(counts) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    unet = base / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(unet, unet.with_suffix(".fp16.safetensors"))
    both = inspect(base, Stage.BASE)
    assert weight_files(base) == {".safetensors"}
    assert num_parameters(both) == counts


def test_a_refiner_with_another_noise_schedule_or_native_size_is_no_pair(
    checkpoints: dict[Stage, Checkpoint],
) -> None:
    other = replace(checkpoints[Stage.REFINER], scheduler=CheckpointScheduler(NoiseConfig()))
    assert not is_pair(checkpoints[Stage.BASE], other)
    larger = replace(checkpoints[Stage.REFINER], native_size=1024)
    assert not is_pair(checkpoints[Stage.BASE], larger)


def test_a_refiner_needs_one_text_encoder_only(checkpoints: dict[Stage, Checkpoint]) -> None:
    with pytest.raises(CheckpointError, match=r"lacks text_encoder in model_index.json"):
        inspect(checkpoints[Stage.REFINER].folder, Stage.BASE)
