"""The weights of LoRA files: two matrices whose product is the difference that trainers define."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import WeightsNotFinite
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.checkpoints.model_layers import ModelLayers, layers_of
from serve_app.runtime.extensions.lora_weights import LayerWeights, read_weights
from tests.support.lora_files import lora_file
from tests.support.lycoris_files import CONVOLUTIONAL, LINEAR, lycoris_file

DEMO = demo_folder(Stage.BASE)
PROJECTION = "mid_block.attentions.0.proj_in"


@pytest.fixture(scope="module")
def model() -> ModelLayers:
    return layers_of(inspect(DEMO, Stage.BASE))


def weights_of(path: Path, model: ModelLayers) -> dict[str, LayerWeights]:
    """The weights in a file by the layers that they change."""
    file = inspect_lora(path)
    places = file.place(model)
    weights = read_weights(file, places)
    for place, layer in zip(places, weights, strict=True):
        assert layer.rank == place.change.rank
        assert layer.up.numel() + layer.down.numel() == place.change.num_parameters
    return {place.layer: layer for place, layer in zip(places, weights, strict=True)}


def difference_of(weights: LayerWeights) -> torch.Tensor:
    return weights.up.float() @ weights.down.float() * (weights.alpha / weights.rank)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        *(pytest.param(kind, ["attn1.to_q", "attn2.to_k", "ff.net.2"], id=kind) for kind in LINEAR),
        *(
            pytest.param(kind, ["resnets.0.conv1", "samplers.0.conv"], id=f"{kind}, convolution")
            for kind in CONVOLUTIONAL
        ),
    ],
)
def test_the_matrices_of_every_kind_give_the_difference_it_defines(
    tmp_path: Path, model: ModelLayers, kind: str, layers: list[str]
) -> None:
    path = tmp_path / "a.safetensors"
    makers = LINEAR if "attn1.to_q" in layers else CONVOLUTIONAL
    differences = lycoris_file(DEMO, path, layers, [makers[kind]])
    weights = weights_of(path, model)
    assert weights.keys() == differences.keys()
    for layer, difference in differences.items():
        given, expected = difference_of(weights[layer]), difference.flatten(1)
        assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_bias_is_scaled_as_the_product_is(tmp_path: Path, model: ModelLayers) -> None:
    path, bias = tmp_path / "a.safetensors", torch.arange(96.0)
    stem = f"unet.{PROJECTION}"
    save_file(
        {
            f"{stem}.lora_A.weight": torch.ones(4, 96),
            f"{stem}.lora_B.weight": torch.ones(96, 4),
            f"{stem}.lora_B.bias": bias,
            f"{stem}.alpha": torch.tensor(2.0),
        },
        path,
    )
    weights = read_weights(file := inspect_lora(path), file.place(model))[0]
    assert weights.bias is not None
    assert torch.equal(weights.bias * (weights.alpha / weights.rank), bias / 2)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8}, 2),
        ({"lora_alpha": 8, "use_rslora": True}, 4),
        ({"lora_alpha": 8, "alpha_pattern": {"proj_in": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"proj": 2}}, 2),
        ({"alpha": 8}, 2),
        ({}, 1),
    ],
)
@pytest.mark.parametrize("is_beside", [True, False])
def test_a_config_scales_the_layers_as_peft_does(
    tmp_path: Path, model: ModelLayers, config: dict[str, object], scale: float, is_beside: bool
) -> None:
    path, written = tmp_path / "adapter_model.safetensors", {"r": 4} | config
    notes = {}
    if is_beside:
        (tmp_path / "adapter_config.json").write_text(json.dumps(written))
    else:
        by_network = {f"unet.{key}": value for key, value in written.items()}
        notes["lora_adapter_metadata"] = json.dumps(by_network)
    lora_file(
        DEMO,
        path,
        style="peft, alone",
        networks=["unet"],
        layers=["mid_block.attentions.0.proj_in"],
        notes=notes,
    )
    (weights,) = weights_of(path, model).values()
    assert weights.alpha / weights.rank == pytest.approx(scale)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
)
def test_numbers_of_every_type_are_read(
    tmp_path: Path, model: ModelLayers, dtype: torch.dtype
) -> None:
    path = lora_file(DEMO, tmp_path / "a.safetensors", layers=["proj_in"], alphas=[2, 3])
    stored = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(stored, path)
    given = weights_of(path, model)
    save_file({name: tensor.float() for name, tensor in stored.items()}, path)
    for layer, expected in weights_of(path, model).items():
        assert torch.equal(difference_of(given[layer]), difference_of(expected))


@pytest.mark.parametrize(
    ("value", "dtype", "found"),
    [
        (float("nan"), torch.float32, "1 NaN"),
        (float("-inf"), torch.float16, "1 infinite"),
        (float("nan"), torch.float8_e4m3fn, "1 NaN"),
    ],
)
def test_a_value_that_is_not_finite_is_refused_by_its_tensor(
    tmp_path: Path, model: ModelLayers, value: float, dtype: torch.dtype, found: str
) -> None:
    path = lora_file(DEMO, tmp_path / "a.safetensors", layers=[PROJECTION], networks=["unet"])
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[name].view(-1)[7] = value
    save_file(tensors, path)
    with pytest.raises(WeightsNotFinite) as refused:
        weights_of(path, model)
    assert refused.value.problem == (
        f"holds a.safetensors, whose tensor {name} is damaged: {found} of 384 values"
    )
