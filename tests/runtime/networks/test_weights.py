"""Weights as they are read: scaled, cast, checked, and equal to what diffusers reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import AuraError, CheckpointError, WeightsNotFinite
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.safety_checker import ImageSafetyChecker
from tests.support.checkpoints import change_tensors, shard, write_safety_checker
from tests.support.single_files import to_single_file
from tests.support.tiny_checkpoints import tiny_checkpoint

Tensors = dict[str, torch.Tensor]
FP8, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
UNET = "unet/diffusion_pytorch_model.safetensors"
PREFIX = "model.diffusion_model."
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
PUBLISHED = f"{PREFIX}input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "sdxl")


def networks(modules: Modules) -> dict[str, torch.nn.Module]:
    encoders = dict(enumerate(modules.text_encoders.networks))
    return {
        "unet": modules.unet,
        "vae": modules.vae,
        **{f"text {n}": e for n, e in encoders.items()},
    }


def states(modules: Modules) -> dict[str, Tensors]:
    return {name: dict(network.state_dict()) for name, network in networks(modules).items()}


def assert_equal(ours: Modules, theirs: Modules) -> None:
    first, second = states(ours), states(theirs)
    assert first.keys() == second.keys()
    for name, state in first.items():
        assert state.keys() == second[name].keys()
        assert all(torch.equal(tensor, second[name][key]) for key, tensor in state.items())


def assert_layer(modules: Modules, expected: torch.Tensor) -> None:
    layer = modules.unet.state_dict()[LAYER]
    assert torch.equal(layer, expected.to(layer.dtype))


def test_a_folder_is_read_to_the_bits_of_diffusers(folder: Path, cpu: Device) -> None:
    modules = load(inspect(folder, Stage.BASE), cpu)
    for ours, stock in (
        (modules.unet, UNet2DConditionModel.from_pretrained(folder / "unet")),
        (modules.vae, AutoencoderKL.from_pretrained(folder / "vae")),
    ):
        theirs = stock.state_dict()
        assert ours.state_dict().keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
        assert not any(parameter.requires_grad for parameter in ours.parameters())
        assert not ours.training


def test_a_single_file_is_read_to_the_bits_of_diffusers(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    file = to_single_file(folder, tmp_path / "a.safetensors")
    modules = load(inspect(file, Stage.BASE, configs=folder), cpu)
    options = {"config": str(folder), "local_files_only": True}
    for ours, kind, part in (
        (modules.unet, UNet2DConditionModel, "unet"),
        (modules.vae, AutoencoderKL, "vae"),
    ):
        theirs = kind.from_single_file(str(file), subfolder=part, **options).state_dict()
        assert ours.state_dict().keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
    assert_equal(modules, load(inspect(folder, Stage.BASE), cpu))


def test_a_projection_that_an_old_converter_did_not_transpose_gives_the_same_weights(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    file = to_single_file(folder, tmp_path / "a.safetensors")
    tensors, name = load_file(file), "conditioner.embedders.1.model.text_projection"
    tensors[f"{name}.weight"] = tensors.pop(name).T.contiguous()
    save_file(tensors, file)
    modules = load(inspect(file, Stage.BASE, configs=folder), cpu)
    assert_equal(modules, load(inspect(folder, Stage.BASE), cpu))


def test_shards_and_old_names_give_the_same_weights(folder: Path, cpu: Device) -> None:
    whole = load(inspect(folder, Stage.BASE), cpu)
    shard(folder / UNET, 3)
    shard(folder / "text_encoder_2/model.safetensors", 2)
    vae = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(vae)
    for ours, name in old.items():
        tensors = {key.replace(f".{ours}.", f".{name}."): t for key, t in tensors.items()}
    save_file(tensors, vae)
    assert_equal(load(inspect(folder, Stage.BASE), cpu), whole)


def quantized(weight: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor) -> torch.Tensor:
    values = weight.float() / scale
    return (values if dtype.is_floating_point else values.round()).to(dtype)


def per_tensor(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().abs().max() / 100


def per_row(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().abs().amax(1, keepdim=True) / 100


@pytest.mark.parametrize("end", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("scale_of", [per_tensor, per_row], ids=["tensor", "row"])
@pytest.mark.parametrize("dtype", [FP8, E5M2, torch.int8], ids=str)
def test_a_weight_with_a_scale_is_the_value_times_the_scale(
    folder: Path,
    tmp_path: Path,
    cpu: Device,
    dtype: torch.dtype,
    scale_of: Callable[[torch.Tensor], torch.Tensor],
    end: str,
) -> None:
    weight = load_file(folder / UNET)[LAYER]
    scale = scale_of(weight)
    stored = quantized(weight, dtype, scale)
    expected = stored.float() * scale
    assert not torch.equal(expected, weight.float())
    assert torch.allclose(expected, weight.float(), atol=float(scale.max()) * 10)
    file = to_single_file(folder, tmp_path / "a.safetensors")
    stem = PUBLISHED.removesuffix("weight")
    extra = {PUBLISHED: stored, stem + end: scale, "scaled_fp8": torch.empty(0, dtype=FP8)}
    extra[f"{stem}scale_input"] = torch.ones(())
    change_tensors(file, change=extra)
    assert_layer(load(inspect(file, Stage.BASE, configs=folder), cpu), expected)
    change_tensors(folder / UNET, change={LAYER: stored, LAYER.removesuffix("weight") + end: scale})
    assert_layer(load(inspect(folder, Stage.BASE), cpu), expected)


def test_fp8_without_a_scale_is_cast_as_diffusers_does(folder: Path, cpu: Device) -> None:
    weight = load_file(folder / UNET)[LAYER].to(FP8)
    change_tensors(folder / UNET, change={LAYER: weight})
    modules = load(inspect(folder, Stage.BASE), cpu)
    assert_layer(modules, weight.float())
    stock = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    assert torch.equal(modules.unet.state_dict()[LAYER], stock.state_dict()[LAYER])


def described(**content: object) -> torch.Tensor:
    """Return a description of a format, as ComfyUI stores it."""
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def test_a_format_that_is_more_than_a_scale_is_refused(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    file = to_single_file(folder, tmp_path / "a.safetensors")
    weight = load_file(file)[PUBLISHED]
    scale = per_tensor(weight)
    stem = PUBLISHED.removesuffix("weight")
    stored = {PUBLISHED: quantized(weight, FP8, scale), f"{stem}weight_scale": scale}

    def write(**extra: torch.Tensor) -> Path:
        copy = tmp_path / "b.safetensors"
        added = {stem + name: tensor for name, tensor in extra.items()}
        save_file(load_file(file) | stored | added, copy)
        return copy

    plain = described(format="float8_e4m3fn")
    load(inspect(write(comfy_quant=plain), Stage.BASE, configs=folder), cpu)
    for extra, named in (
        ({"comfy_quant": described(format="nvfp4")}, f"{PUBLISHED} (comfy_quant)"),
        ({"comfy_quant": described(format="int8_tensorwise", convrot=True)}, "(comfy_quant)"),
        ({"comfy_quant": torch.zeros(3)}, "(comfy_quant)"),
        ({"scale_weight": scale.clone()}, f"{stem}weight_scale (a second scale)"),
        ({"weight_scale": torch.ones(2, 2)}, f"{stem}weight_scale (F32 [2, 2])"),
        ({"weight_scale_inv": scale.clone()}, f"nothing reads ({stem}weight_scale_inv)"),
        ({"weight.absmax": torch.ones(4)}, f"nothing reads ({stem}weight.absmax)"),
    ):
        with pytest.raises(CheckpointError) as refused:
            inspect(write(**extra), Stage.BASE, configs=folder)
        assert named in refused.value.problem


@pytest.mark.parametrize("bad", ["nan", "inf"])
@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("unet", "conv_out.bias"),
        ("vae", "decoder.conv_in.weight"),
        ("text_encoder", "final_layer_norm.weight"),
        ("text_encoder_2", "text_projection.weight"),
    ],
)
def test_a_weight_that_is_not_finite_is_named_with_its_file(
    folder: Path, cpu: Device, network: str, name: str, bad: str
) -> None:
    (file,) = (folder / network).glob("*.safetensors")
    tensor = load_file(file)[name]
    tensor.view(-1)[1] = float(bad)
    change_tensors(file, change={name: tensor})
    with pytest.raises(WeightsNotFinite) as refused:
        load(inspect(folder, Stage.BASE), cpu)
    error = refused.value
    kind = "1 NaN" if bad == "nan" else "1 infinite"
    assert (error.subject, error.code) == (str(folder), "WEIGHTS_NOT_FINITE")
    assert error.problem == (
        f"holds {network}/{file.name}, whose tensor {name} is damaged: {kind} of {tensor.numel()} "
        "values"
    )


def test_a_scale_that_is_not_finite_is_named(folder: Path, cpu: Device) -> None:
    scale = LAYER.removesuffix("weight") + "weight_scale"
    change_tensors(folder / UNET, change={scale: torch.tensor(float("nan"))})
    with pytest.raises(WeightsNotFinite, match=r"to_q\.weight_scale is damaged"):
        load(inspect(folder, Stage.BASE), cpu)


def test_a_weight_too_large_for_the_precision_is_no_damage(folder: Path, cpu: Device) -> None:
    change_tensors(folder / UNET, change={"conv_out.bias": torch.full((4,), 1e5)})
    checkpoint = inspect(folder, Stage.BASE)
    load(checkpoint, cpu)
    half = open_device("cpu", precision="fp16", xformers=False, cpu_threads=1)
    with pytest.raises(CheckpointError) as refused:
        load(checkpoint, half)
    assert not isinstance(refused.value, WeightsNotFinite)
    assert refused.value.problem == (
        f"holds {UNET}, whose tensor conv_out.bias has values up to 1e+05, too large for float16"
    )
    assert refused.value.remedy == "Set MODEL_PRECISION=bf16 or fp32"


def test_a_safety_checker_with_a_nan_is_named(tmp_path: Path, cpu: Device) -> None:
    folder = write_safety_checker(tmp_path / "checker")
    ImageSafetyChecker(folder, cpu)
    change_tensors(
        folder / "model.safetensors", change={"concept_embeds": torch.full((17, 4), torch.nan)}
    )
    with pytest.raises(
        WeightsNotFinite, match=r"concept_embeds is damaged: 68 NaN of 68"
    ) as refused:
        ImageSafetyChecker(folder, cpu)
    assert refused.value.subject == str(folder)


def test_a_file_that_changes_after_its_header_was_read_is_refused(
    folder: Path, cpu: Device
) -> None:
    checkpoint = inspect(folder, Stage.BASE)
    change_tensors(folder / UNET, without="conv_out.bias")
    with pytest.raises(AuraError, match=r"without 1 tensor .*conv_out\.bias"):
        load(checkpoint, cpu)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_its_library_refuses_is_named(
    folder: Path, cpu: Device, name: str
) -> None:
    (folder / "tokenizer" / name).write_text("[")
    with pytest.raises(CheckpointError) as refused:
        load(inspect(folder, Stage.BASE), cpu)
    assert "\n" not in refused.value.problem
    assert "tokenizer" in refused.value.problem
