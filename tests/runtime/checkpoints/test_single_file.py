"""Single-file checkpoints: recognized by their headers, and loaded to the bits of a folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from serve_app.core.diffusion.model_defaults import ModelDefaults
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import CheckpointError, ConfigsError
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect, num_parameters
from serve_app.runtime.checkpoints.licenses import RAIL, license_of
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.loading import load
from tests.support.single_files import to_single_file

TEXT = ("text_encoder", "text_encoder_2")
UNET = "model.diffusion_model."
SPEC = ImageSpec(prompt="a red circle", seed=5, width=128, height=128, steps=4, guidance=5)


@pytest.fixture(scope="module")
def tune(checkpoints: dict[Stage, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "demo-tune.safetensors"
    return to_single_file(checkpoints[Stage.BASE].folder, file)


def assert_same_tensors(ours: Checkpoint, theirs: Checkpoint, device: Device) -> None:
    """Compare every tensor of two checkpoints, and an encoded prompt."""
    first, second = load(ours, device), load(theirs, device)
    for network in ("unet", "vae"):
        mine, other = (getattr(m, network).state_dict() for m in (first, second))
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
        assert all(mine[name].dtype == other[name].dtype for name in mine)
    encodings = [
        m.text_encoders.encode(m.text_encoders.tokenize("a (red:1.3) fox", "p"), 2)
        for m in (first, second)
    ]
    assert all(torch.equal(mine, other) for mine, other in zip(*encodings, strict=True))


@pytest.mark.parametrize("without", [(), ("vae",), TEXT, ("vae", *TEXT)], ids="+".join)
@pytest.mark.parametrize("stage", Stage)
def test_a_file_loads_to_the_bits_of_the_folder_whatever_it_lacks(
    checkpoints: dict[Stage, Checkpoint],
    cpu: Device,
    tmp_path: Path,
    stage: Stage,
    without: tuple[str, ...],
) -> None:
    folder = checkpoints[stage]
    file = to_single_file(folder.folder, tmp_path / "tune.safetensors", without=without)
    checkpoint = inspect(file, stage, configs=folder.folder)
    assert checkpoint.file is not None
    assert not checkpoint.file.components & set(without)
    assert (checkpoint.name, checkpoint.native_size, checkpoint.noise_config) == (
        "tune",
        folder.native_size,
        folder.noise_config,
    )
    assert_same_tensors(folder, checkpoint, cpu)


@pytest.mark.parametrize("without", [(), ("vae", *TEXT)], ids="+".join)
@pytest.mark.parametrize("stage", Stage)
def test_a_file_with_what_its_folder_lends_has_as_many_parameters(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path, stage: Stage, without: tuple[str, ...]
) -> None:
    folder = checkpoints[stage]
    file = to_single_file(folder.folder, tmp_path / "tune.safetensors", without=without)
    assert num_parameters(inspect(file, stage, configs=folder.folder)) == num_parameters(folder)


def test_a_file_makes_the_same_image_as_its_folder(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, tune: Path
) -> None:
    folder = checkpoints[Stage.BASE]
    file = inspect(tune, Stage.BASE, configs=folder.folder)
    images = [LocalPipeline([c], cpu, images=1).generate([SPEC])[0] for c in (folder, file)]
    assert images[0].tobytes() == images[1].tobytes()


def test_a_vae_with_attention_loads_as_that_of_sdxl_does(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints[Stage.BASE].folder, tmp_path / "sdxl"))
    config = json.loads((folder / "vae/config.json").read_text())
    torch.manual_seed(0)
    attentive = AutoencoderKL.from_config(config | {"mid_block_add_attention": True})
    shutil.rmtree(folder / "vae")
    attentive.save_pretrained(folder / "vae")
    file = to_single_file(folder, tmp_path / "tune.safetensors")
    assert_same_tensors(inspect(folder, Stage.BASE), inspect(file, Stage.BASE, configs=folder), cpu)


def test_a_file_gives_its_prediction_type_and_zero_terminal_snr(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path
) -> None:
    folder = checkpoints[Stage.BASE].folder
    markers = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    without = ("vae", *TEXT)
    both = to_single_file(folder, tmp_path / "v.safetensors", without=without, extra=markers)
    noise = inspect(both, Stage.BASE, configs=folder).noise_config
    assert (noise.prediction_type, noise.rescale_betas_zero_snr) == ("v_prediction", True)
    assert noise.timestep_spacing == "trailing"
    metadata = {"modelspec.prediction_type": "v"}
    noted = to_single_file(folder, tmp_path / "n.safetensors", without=without, metadata=metadata)
    noise = inspect(noted, Stage.BASE, configs=folder).noise_config
    assert (noise.prediction_type, noise.rescale_betas_zero_snr) == ("v_prediction", False)
    assert noise.timestep_spacing == "leading"


def test_a_distilled_file_is_recognized_by_its_name_or_its_title(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path
) -> None:
    folder, without = checkpoints[Stage.BASE].folder, ("vae", *TEXT)
    named = to_single_file(folder, tmp_path / "fox_lightning_8step.safetensors", without=without)
    lightning = ModelDefaults(8, 1.0, Sampler.EULER_TRAILING)
    assert inspect(named, Stage.BASE, configs=folder).defaults == lightning
    metadata = {"modelspec.title": "Fox LCM"}
    titled = to_single_file(folder, tmp_path / "a.safetensors", without=without, metadata=metadata)
    assert inspect(titled, Stage.BASE, configs=folder).defaults == ModelDefaults(
        4, 1.0, Sampler.LCM
    )


FOREIGN: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "SD 1": ({"cond_stage_model.transformer.x": (1,)}, "is a Stable Diffusion 1 checkpoint"),
    "SD 2": ({"cond_stage_model.model.x": (1,)}, "is a Stable Diffusion 2 checkpoint"),
    "SD 1, bare": (
        {
            f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
            f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        },
        "is a Stable Diffusion 1 checkpoint",
    ),
    "SD 3": ({f"{UNET}joint_blocks.0.x": (1,)}, "is a Stable Diffusion 3 checkpoint"),
    "Flux": ({"double_blocks.0.img_attn.x": (1,)}, "is a Flux checkpoint"),
    "LoRA": ({"lora_unet_x.lora_up.weight": (1,)}, "is a LoRA and no whole checkpoint"),
    "PEFT": ({"unet.x.lora_A.weight": (1,)}, "is a LoRA and no whole checkpoint"),
    "VAE": ({"decoder.conv_in.weight": (1,)}, "is a VAE and no whole checkpoint"),
    "VAE, prefixed": ({"first_stage_model.decoder.conv_in.weight": (1,)}, "is a VAE and no whole"),
    "UNet": ({"down_blocks.0.resnets.0.x": (1,)}, "is one network in diffusers' layout"),
    "nothing": ({"x": (1,)}, "holds no SDXL: its UNet is missing"),
    "no sizes": (
        {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)},
        "holds no SDXL: its UNet takes no image sizes",
    ),
    "inpainting": (
        {
            f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3),
            f"{UNET}label_emb.0.0.weight": (1280, 2816),
        },
        "is an inpainting or editing checkpoint (9 channels in)",
    ),
    "half a pair": (
        {
            f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
            f"{UNET}label_emb.0.0.weight": (1280, 2816),
            "conditioner.embedders.1.model.text_projection": (8, 8),
        },
        "holds the second text encoder and lacks the first",
    ),
    "SDXL's refiner": (
        {
            f"{UNET}input_blocks.0.0.weight": (384, 4, 3, 3),
            f"{UNET}label_emb.0.0.weight": (1536, 2560),
            f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (768, 1280),
        },
        "is an SDXL refiner, where a base is wanted",
    ),
    "SDXL on the demo's configs": (
        {
            f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
            f"{UNET}label_emb.0.0.weight": (1280, 2816),
            f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
        },
        "of another shape than {configs}/unet/config.json asks for "
        "(model.diffusion_model.input_blocks.0.0.weight [320, 4, 3, 3] for [64, 4, 3, 3]",
    ),
}


@pytest.mark.parametrize("name", list(FOREIGN))
def test_a_file_of_another_kind_is_refused_as_what_it_is(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path, name: str
) -> None:
    shapes, problem = FOREIGN[name]
    file = tmp_path / "mine.safetensors"
    save_file({key: torch.zeros(shape, dtype=torch.uint8) for key, shape in shapes.items()}, file)
    with pytest.raises(CheckpointError) as refused:
        inspect(file, Stage.BASE, configs=checkpoints[Stage.BASE].folder)
    error = refused.value
    assert error.subject == str(file)
    assert problem.format(configs=checkpoints[Stage.BASE].folder) in error.problem
    assert "\n" not in error.problem


@pytest.mark.parametrize("stage", Stage)
def test_a_file_without_a_folder_of_configs_is_refused(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path, stage: Stage
) -> None:
    file = to_single_file(checkpoints[stage].folder, tmp_path / "tune.safetensors")
    with pytest.raises(ConfigsError, match=r"lacks configs and tokenizers$"):
        inspect(file, stage)
    with pytest.raises(ConfigsError, match=r"takes its configs from .*, which lacks model_index"):
        inspect(file, stage, configs=tmp_path)


def test_a_file_that_is_truncated_is_refused(
    checkpoints: dict[Stage, Checkpoint], tune: Path, tmp_path: Path
) -> None:
    folder, short = checkpoints[Stage.BASE].folder, tmp_path / "short.safetensors"
    short.write_bytes(tune.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"holds a truncated short\.safetensors"):
        inspect(short, Stage.BASE, configs=folder)


def test_a_file_does_not_have_the_licence_of_the_folder_that_lends_configs(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path
) -> None:
    folder = checkpoints[Stage.BASE].folder
    silent = to_single_file(folder, tmp_path / "a.safetensors")
    assert license_of(inspect(silent, Stage.BASE, configs=folder)).name == (
        f"{RAIL} (assumed: the file does not say)"
    )
    metadata = {"modelspec.license": "Fair AI Public License 1.0-SD"}
    noted = to_single_file(folder, tmp_path / "b.safetensors", metadata=metadata)
    terms = license_of(inspect(noted, Stage.BASE, configs=folder))
    assert (terms.name, terms.restrictions) == ("Fair AI Public License 1.0-SD", ())
