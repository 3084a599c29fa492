"""One file in the published layout: told for what it is, and loaded to the folder's own bits."""

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
def whole(checkpoints: dict[Stage, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "demo-tune.safetensors"
    return to_single_file(checkpoints[Stage.BASE].folder, file)


def same_tensors(ours: Checkpoint, theirs: Checkpoint, device: Device) -> None:
    """Every tensor, every encoding."""
    first, second = load(ours, device), load(theirs, device)
    for network in ("unet", "vae"):
        ones, others = (getattr(m, network).state_dict() for m in (first, second))
        assert ones.keys() == others.keys()
        assert all(torch.equal(ones[name], others[name]) for name in ones)
        assert all(ones[name].dtype == others[name].dtype for name in ones)
    read = [
        m.text_encoders.encode(m.text_encoders.tokenize("a (red:1.3) fox", "p"), 2)
        for m in (first, second)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*read, strict=True))


@pytest.mark.parametrize("without", [(), ("vae",), TEXT, ("vae", *TEXT)], ids="+".join)
@pytest.mark.parametrize("stage", Stage)
def test_a_file_loads_to_the_folder_s_own_bits_whatever_it_lacks(
    checkpoints: dict[Stage, Checkpoint],
    cpu: Device,
    tmp_path: Path,
    stage: Stage,
    without: tuple[str, ...],
) -> None:
    folder = checkpoints[stage]
    file = to_single_file(folder.folder, tmp_path / "tune.safetensors", without=without)
    told = inspect(file, stage, configs=folder.folder)
    assert told.file is not None
    assert not told.file.components & set(without)
    assert (told.name, told.native_size, told.noise_config) == (
        "tune",
        folder.native_size,
        folder.noise_config,
    )
    same_tensors(folder, told, cpu)


@pytest.mark.parametrize("without", [(), ("vae", *TEXT)], ids="+".join)
@pytest.mark.parametrize("stage", Stage)
def test_a_file_and_what_it_takes_from_its_folder_have_as_many_parameters(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path, stage: Stage, without: tuple[str, ...]
) -> None:
    folder = checkpoints[stage]
    file = to_single_file(folder.folder, tmp_path / "tune.safetensors", without=without)
    counted, known = (
        num_parameters(inspect(file, stage, configs=folder.folder)),
        num_parameters(folder),
    )
    if not without:  # a file has more that nobody loads: a scale of likeness, numbered places
        known["text_encoder_2"] += 1
        known.update({"text_encoder": known["text_encoder"] + 77} if stage is Stage.BASE else {})
    assert counted == known


def test_a_file_paints_the_folder_s_own_picture(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, whole: Path
) -> None:
    folder = checkpoints[Stage.BASE]
    file = inspect(whole, Stage.BASE, configs=folder.folder)
    pictures = [LocalPipeline([one], cpu, images=1).generate([SPEC])[0] for one in (folder, file)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_a_vae_with_attention_as_sdxl_s_own_loads_too(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints[Stage.BASE].folder, tmp_path / "sdxl"))
    config = json.loads((folder / "vae/config.json").read_text())
    torch.manual_seed(0)
    attentive = AutoencoderKL.from_config(config | {"mid_block_add_attention": True})
    shutil.rmtree(folder / "vae")
    attentive.save_pretrained(folder / "vae")
    file = to_single_file(folder, tmp_path / "tune.safetensors")
    same_tensors(inspect(folder, Stage.BASE), inspect(file, Stage.BASE, configs=folder), cpu)


def test_a_file_says_how_it_predicts_and_where_its_noise_ends(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path
) -> None:
    folder = checkpoints[Stage.BASE].folder
    marks = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    without = ("vae", *TEXT)
    both = to_single_file(folder, tmp_path / "v.safetensors", without=without, more=marks)
    noise = inspect(both, Stage.BASE, configs=folder).noise_config
    assert (noise.prediction_type, noise.rescale_betas_zero_snr) == ("v_prediction", True)
    assert noise.timestep_spacing == "trailing"
    notes = {"modelspec.prediction_type": "v"}
    noted = to_single_file(folder, tmp_path / "n.safetensors", without=without, notes=notes)
    noise = inspect(noted, Stage.BASE, configs=folder).noise_config
    assert (noise.prediction_type, noise.rescale_betas_zero_snr) == ("v_prediction", False)
    assert noise.timestep_spacing == "leading"


def test_a_distilled_file_is_known_by_its_name_or_its_title(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path
) -> None:
    folder, without = checkpoints[Stage.BASE].folder, ("vae", *TEXT)
    named = to_single_file(folder, tmp_path / "fox_lightning_8step.safetensors", without=without)
    few = ModelDefaults(8, 1.0, Sampler.EULER_TRAILING)
    assert inspect(named, Stage.BASE, configs=folder).defaults == few
    notes = {"modelspec.title": "Fox LCM"}
    titled = to_single_file(folder, tmp_path / "a.safetensors", without=without, notes=notes)
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
    "nothing": ({"x": (1,)}, "holds no SDXL: its UNet is not there"),
    "no sizes": (
        {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)},
        "holds no SDXL: its UNet is told no picture sizes",
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
        "its model.diffusion_model.input_blocks.0.0.weight has shape [320, 4, 3, 3], and they want "
        "64 on axis 0",
    ),
}


@pytest.mark.parametrize("name", list(FOREIGN))
def test_a_file_of_another_kind_is_told_for_what_it_is(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path, name: str
) -> None:
    shapes, sentence = FOREIGN[name]
    file = tmp_path / "mine.safetensors"
    save_file({key: torch.zeros(shape, dtype=torch.uint8) for key, shape in shapes.items()}, file)
    with pytest.raises(CheckpointError) as refused:
        inspect(file, Stage.BASE, configs=checkpoints[Stage.BASE].folder)
    error = refused.value
    assert error.subject == str(file)
    assert sentence in error.problem
    assert "\n" not in error.problem


@pytest.mark.parametrize("stage", Stage)
def test_without_a_folder_of_configs_a_file_asks_for_one(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path, stage: Stage
) -> None:
    file = to_single_file(checkpoints[stage].folder, tmp_path / "tune.safetensors")
    with pytest.raises(ConfigsError, match=r"lacks configs and tokenizers$"):
        inspect(file, stage)
    with pytest.raises(ConfigsError, match=r"takes its configs from .*, which lacks model_index"):
        inspect(file, stage, configs=tmp_path)


def test_a_file_that_is_truncated_or_lacks_a_tensor_is_told(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, whole: Path, tmp_path: Path
) -> None:
    folder, short = checkpoints[Stage.BASE].folder, tmp_path / "short.safetensors"
    short.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"holds a truncated short\.safetensors"):
        inspect(short, Stage.BASE, configs=folder)
    pruned = Path(shutil.copytree(folder, tmp_path / "pruned"))
    config = json.loads((pruned / "unet/config.json").read_text())
    (pruned / "unet/config.json").write_text(
        json.dumps(config | {"transformer_layers_per_block": 2})
    )
    with pytest.raises(
        CheckpointError, match=r"demo-tune\.safetensors does not match .*: it lacks tensors"
    ):
        load(inspect(whole, Stage.BASE, configs=pruned), cpu)


def test_a_file_s_terms_are_its_own_and_not_those_of_the_folder_that_lends_configs(
    checkpoints: dict[Stage, Checkpoint], tmp_path: Path
) -> None:
    folder = checkpoints[Stage.BASE].folder
    silent = to_single_file(folder, tmp_path / "a.safetensors")
    assert license_of(inspect(silent, Stage.BASE, configs=folder)).name == (
        f"{RAIL} (assumed: the file does not say)"
    )
    notes = {"modelspec.license": "Fair AI Public License 1.0-SD"}
    noted = to_single_file(folder, tmp_path / "b.safetensors", notes=notes)
    told = license_of(inspect(noted, Stage.BASE, configs=folder))
    assert (told.name, told.restrictions) == ("Fair AI Public License 1.0-SD", ())
