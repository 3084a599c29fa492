"""Prepacked layers compute what plain ones do, whatever size they were laid out for."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from serve_app.core.diffusion.prompt import ENCODED_TOKENS
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.networks.compiler import compiler_problem
from serve_app.runtime.networks.kept_conditioning import keep_conditioning
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.prepacked import (
    PrepackedConv2d,
    PrepackedLinear,
    keep_plain_weights,
    prepack,
    prepack_unet,
    prepack_vae,
    prepacking_problem,
)
from serve_app.runtime.networks.vae import SdxlVae

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
SIZES = [(16, 16), (13, 19), (8, 32)]  # of latents

pytestmark = pytest.mark.skipif(
    bool(prepacking_problem(torch.float32)), reason="this build of torch has no oneDNN"
)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def device(request: pytest.FixtureRequest) -> Device:
    return open_device("cpu", precision=request.param, xformers=False, cpu_threads=1)


@pytest.fixture(scope="module")
def plain(checkpoints: dict[Stage, Checkpoint], device: Device) -> Modules:
    return load(checkpoints[Stage.BASE], device)


def plain_layers(network: nn.Module) -> list[str]:
    """The names of layers that torch itself computes."""
    return [name for name, m in network.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]


@torch.inference_mode()
def predict(unet: Any, size: tuple[int, int], rows: int) -> torch.Tensor:
    """The network's output for some rows, which are the same ones in every call."""
    generator, config = torch.Generator().manual_seed(0), unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    x, embeds, text = (
        torch.randn(4, *shape, generator=generator)[:rows].to(unet.dtype)
        for shape in ((4, *size), (77, config.cross_attention_dim), (pooled,))
    )
    added = {"text_embeds": text, "time_ids": torch.ones(rows, 6, dtype=unet.dtype)}
    times = torch.full((rows,), 500.0)
    predicted: torch.Tensor = unet(
        x, times, encoder_hidden_states=embeds, added_cond_kwargs=added
    ).sample
    return predicted


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_unet_computes_what_the_plain_one_does_whatever_size_it_was_laid_out_for(
    plain: Modules, size: tuple[int, int]
) -> None:
    by_layout = []
    for latent_shape in ((16, 16), (128, 128)):
        unet = deepcopy(plain.unet)
        prepack_unet(unet, latent_shape)
        by_layout.append([predict(unet, size, rows) for rows in (1, 3, 4)])
    assert all(torch.equal(a, b) for a, b in zip(*by_layout, strict=True))
    expected = predict(plain.unet, size, 4)
    tolerance = TOLERANCE[plain.unet.dtype]
    assert torch.allclose(by_layout[0][-1], expected, rtol=tolerance, atol=tolerance)


def test_only_layers_with_one_line_per_row_stay_plain(plain: Modules) -> None:
    unet, vae = deepcopy(plain.unet), deepcopy(plain.vae)
    assert len(plain_layers(unet)) > 100
    prepack_unet(unet, (16, 16))
    prepack_vae(vae, (16, 16))
    assert {name.rsplit(".", 1)[-1] for name in plain_layers(unet)} == {
        "linear_1",
        "linear_2",
        "time_emb_proj",
    }
    assert not plain_layers(vae)
    again = deepcopy(plain_layers(unet))
    prepack_unet(unet, (32, 32))
    assert plain_layers(unet) == again


def test_a_unet_that_keeps_its_conditioning_already_is_prepacked_too(plain: Modules) -> None:
    """As when a second pipeline is built of the same networks."""
    unet = deepcopy(plain.unet)
    keep_conditioning(unet, 4 * ENCODED_TOKENS)
    prepack_unet(unet, (16, 16))
    expected = deepcopy(plain.unet)
    prepack_unet(expected, (16, 16))
    assert plain_layers(unet) == plain_layers(expected)
    assert torch.equal(predict(unet, (16, 16), 2), predict(expected, (16, 16), 2))


def test_the_plain_weights_come_back_to_the_bit(plain: Modules) -> None:
    unet = deepcopy(plain.unet)
    prepack_unet(unet, (16, 16))
    names = [name for name in plain_layers(plain.unet) if name not in plain_layers(unet)]
    assert not {f"{name}.weight" for name in names} & {name for name, _ in unet.named_parameters()}
    for name in names:
        layer, stock = unet.get_submodule(name), plain.unet.get_parameter(f"{name}.weight")
        opaque = unet.get_parameter(f"{name}.weight")
        assert (opaque.shape, opaque.dtype, opaque.device) == (stock.shape, stock.dtype, CPU)
        keep_plain_weights(layer, kept=True)
        weight = unet.get_parameter(f"{name}.weight")
        assert torch.equal(weight, stock)
        keep_plain_weights(layer, kept=True)
        assert unet.get_parameter(f"{name}.weight").data_ptr() == weight.data_ptr()
        keep_plain_weights(layer, kept=False)
        assert layer.plain is None


@torch.inference_mode()
def test_a_vae_decodes_and_encodes_what_the_plain_one_does(plain: Modules) -> None:
    vae = deepcopy(plain.vae)
    prepack_vae(vae, (16, 16))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 15, 20, generator=generator)
    ours, stock = (SdxlVae(network, CPU) for network in (vae, plain.vae))
    image, expected = ours.decode(latents).image, stock.decode(latents).image
    assert abs(image.astype(int) - expected).max() <= (1 if vae.dtype is torch.float32 else 4)
    encoded, stock_encoded = (v.encode(expected, torch.zeros(4, 15, 20)) for v in (ours, stock))
    tolerance = TOLERANCE[vae.dtype]
    assert torch.allclose(encoded, stock_encoded, rtol=tolerance, atol=4 * tolerance)


def test_an_input_of_another_dtype_is_computed_in_it_by_the_plain_layer() -> None:
    """As in a VAE that overflows in half precision, whose other weights are upcast."""
    layers = (
        (nn.Linear(12, 20), torch.randn(2, 5, 12)),
        (nn.Conv2d(12, 20, 3, stride=2, padding=1), torch.randn(2, 12, 7, 9)),
    )
    for layer, x in layers:
        half = nn.Sequential(layer).to(torch.bfloat16)
        upcast = deepcopy(layer).float()
        prepack(half, {"0": tuple(x.shape)})
        prepacked = half[0]
        assert isinstance(prepacked, PrepackedLinear | PrepackedConv2d)
        for parameter in half.parameters():
            parameter.data = parameter.data.float()
        assert torch.equal(half(x), upcast(x))


def test_a_layer_that_has_no_prepacked_weights_yet_is_plain() -> None:
    """peft makes the layers of a LoRA from the class of the layer that it changes."""
    layer = PrepackedConv2d(4, 8, 3, padding=1)
    plain = nn.Conv2d(4, 8, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(layer(x), plain(x))


def test_a_dtype_without_kernels_is_a_problem_of_one_line() -> None:
    problem = prepacking_problem(torch.complex64)
    assert problem
    assert "\n" not in problem


@pytest.mark.skipif(bool(compiler_problem("cpu")), reason="torch.compile needs a C++ compiler")
def test_what_is_compiled_is_not_prepacked() -> None:
    compiled = open_device(
        "cpu", precision=None, xformers=False, cpu_threads=1, compile_mode="regions"
    )
    assert not compiled.prepacked


def test_a_cpu_prepacks_and_the_numeric_profile_says_so(device: Device) -> None:
    assert device.prepacked
    profiles = {
        replace(device, prepacked=prepacked).numeric_profile(Stage.BASE, 4, "demo").name
        for prepacked in (True, False)
    }
    assert len(profiles) == 2
