"""A UNet with 8-bit layers: what is quantized, what comes of it, and that its bytes hold."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.inputs import NO_INPUTS
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import DeviceError
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.memory.memory_probe import Placement
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.prepacked import keep_plain_weights, prepack_unet
from serve_app.runtime.networks.quantization import (
    EightBitLinear,
    quantization_problem,
    quantize,
    quantize_unet,
)
from serve_app.runtime.networks.twin import twin
from tests.support.extension_files import lora_files
from tests.support.keys import lora
from tests.support.lora_files import lora_file
from tests.support.simulated_card import SimulatedCard

CPU = torch.device("cpu")
SPEC = ImageSpec(prompt="a red circle", seed=3, width=128, height=128, steps=6, guidance=5)

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device("cpu", precision="fp32", xformers=False, cpu_threads=1, quantization="int8")


@pytest.fixture(scope="module")
def stock(checkpoints: dict[Stage, Checkpoint], cpu: Device) -> Modules:
    return load(checkpoints[Stage.BASE], cpu)


@pytest.fixture(scope="module")
def quantized(stock: Modules) -> Modules:
    modules = deepcopy(stock)
    quantize_unet(modules.unet, "int8")
    return modules


def predict(unet: Any, rows: int = 2) -> torch.Tensor:
    """The network's output for some rows, which are the same ones in every call."""
    generator, config = torch.Generator().manual_seed(0), unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    x, prompt, text = (
        torch.randn(4, *shape, generator=generator)[:rows]
        for shape in ((4, 16, 16), (77, config.cross_attention_dim), (pooled,))
    )
    added = {"text_embeds": text, "time_ids": torch.full((rows, 6), 128.0)}
    predicted: torch.Tensor = unet(
        x, torch.full((rows,), 500.0), encoder_hidden_states=prompt, added_cond_kwargs=added
    ).sample
    return predicted


def pictures(checkpoint: Checkpoint, device: Device, specs: Sequence[ImageSpec]) -> list[bytes]:
    pipeline = LocalPipeline([checkpoint], device, images=4, strict=True)
    return [picture.tobytes() for picture in pipeline.generate(specs)]


def relative_error(of: torch.Tensor, to: torch.Tensor) -> float:
    return float((of - to).square().mean().sqrt() / to.square().mean().sqrt())


def linear(features: int, outputs: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(features, outputs, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / features**0.5)
    return layer


def lines(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("mode", "tolerance"), [("int8", 0.015), ("fp8", 0.05)])
def test_a_layer_gives_nearly_what_the_plain_one_gives(
    mode: str, tolerance: float, dtype: torch.dtype
) -> None:
    plain, layer = linear(320, 128, dtype), linear(320, 128, dtype)
    quantize(layer, mode)
    given = lines(2, 40, 320, dtype=dtype)
    assert 0 < relative_error(layer(given), plain(given)) < tolerance
    assert layer(given).dtype is dtype
    assert layer(given).shape == (2, 40, 128)


def test_sums_that_are_beyond_half_precision_until_they_are_scaled_do_not_overflow() -> None:
    plain, layer = linear(1280, 64, torch.float16), linear(1280, 64, torch.float16)
    for either in (plain, layer):
        either.weight.data.fill_(0.1)
    quantize(layer, "int8")
    given = torch.ones(1, 32, 1280, dtype=torch.float16)
    assert 516 * 0.1 < plain(given).max() < 1000
    assert layer(given).isfinite().all()
    assert relative_error(layer(given), plain(given)) < 0.01


def test_a_line_of_zeros_gives_the_bias_alone() -> None:
    layer = linear(64, 32)
    bias = layer.bias.clone()
    quantize(layer, "int8")
    given = lines(1, 4, 64)
    given[0, 2] = 0
    assert torch.equal(layer(given)[0, 2], bias)


@pytest.mark.parametrize("mode", ["int8", "fp8"])
def test_a_line_has_the_same_bits_beside_any_others_and_in_any_number_of_blocks(
    mode: str,
) -> None:
    layer: Any = linear(320, 128)
    quantize(layer, mode)
    given = lines(6, 16, 320)
    together = layer(given)
    for rows in range(1, 6):
        assert torch.equal(layer(given[:rows]), together[:rows])
    assert torch.equal(layer(given[3, :1]), together[3, :1])  # fewer than CUDA's product takes
    layer.max_sums = 17 * 128
    assert torch.equal(layer(given), together)


def test_attention_and_feed_forward_layers_are_quantized_and_nothing_else(
    quantized: Modules,
) -> None:
    layers = dict(quantized.unet.named_modules())
    of_blocks = {
        name
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear) and "transformer_blocks" in name
    }
    of_prompts = {name for name in of_blocks if name.endswith(("attn2.to_k", "attn2.to_v"))}
    chosen = {name for name, layer in layers.items() if isinstance(layer, EightBitLinear)}
    assert chosen == of_blocks - of_prompts
    assert len(chosen) > len(of_prompts) > 0
    assert not any(isinstance(module, EightBitLinear) for module in quantized.vae.modules())


def test_it_predicts_nearly_the_same_with_a_quarter_of_the_memory(
    stock: Modules, quantized: Modules
) -> None:
    error = relative_error(predict(quantized.unet), predict(stock.unet))
    assert 0 < error < 0.01
    name = next(n for n, m in quantized.unet.named_modules() if n.endswith("ff.net.2"))
    plain, layer = (m.unet.get_submodule(name) for m in (stock, quantized))
    outputs = plain.out_features
    in_memory = sum(parameter.nbytes for parameter in layer.parameters())
    assert in_memory == plain.weight.numel() + 2 * 4 * outputs  # scales and biases


def test_images_have_the_same_bytes_in_any_company_and_others_than_without(
    checkpoints: dict[Stage, Checkpoint], device: Device, cpu: Device
) -> None:
    specs = [replace(SPEC, seed=seed, steps=steps) for seed, steps in ((3, 6), (4, 4), (5, 6))]
    base = checkpoints[Stage.BASE]
    together = pictures(base, device, specs)
    assert together == [pictures(base, device, [spec])[0] for spec in specs]
    plain = pictures(base, cpu, specs)
    for ours, theirs in zip(together, plain, strict=True):
        difference = np.frombuffer(ours, np.uint8).astype(int) - np.frombuffer(theirs, np.uint8)
        assert 0 < abs(difference).mean() < 4


def test_the_other_layers_are_prepacked_all_the_same(quantized: Modules) -> None:
    unet = deepcopy(quantized.unet)
    expected = predict(unet)
    prepack_unet(unet, (16, 16))
    kinds = {type(module).__name__ for module in unet.modules()}
    assert {"PrepackedConv2d", "PrepackedLinear", "EightBitLinear"} <= kinds
    assert relative_error(predict(unet), expected) < 1e-3


def test_a_twin_shares_its_weights(quantized: Modules) -> None:
    copy = twin(quantized.unet)
    assert torch.equal(predict(copy), predict(quantized.unet))
    ours, theirs = quantized.unet.parameters(), copy.parameters()
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


def changed_by_loras(modules: Modules, *files: Path) -> torch.Tensor:
    """What LoRAs, all active at half their weight, change of a prediction."""
    by_name = {f"lora {number}": inspect_lora(path) for number, path in enumerate(files)}
    extensions = lora_files(by_name, capacity=len(files)).open(modules)
    plain = predict(modules.unet)
    for name in by_name:
        extensions.attach(ExtensionKey("lora", name))
    extensions.activate(tuple(lora(name, 0.5) for name in by_name), [NO_INPUTS] * 2)
    changed = predict(modules.unet) - plain
    extensions.activate((), [NO_INPUTS] * 2)
    extensions.detach([ExtensionKey("lora", name) for name in by_name])
    assert torch.equal(predict(modules.unet), plain)
    return changed


@pytest.mark.parametrize("kind", ["one", "two", "dora"])
def test_loras_change_what_quantized_layers_give(
    stock: Modules, quantized: Modules, tmp_path: Path, kind: str
) -> None:
    files = []
    for seed in range(2 if kind == "two" else 1):
        files.append(tmp_path / f"{seed}.safetensors")
        lora_file(
            demo_folder(Stage.BASE),
            files[-1],
            style="peft",
            networks=["unet"],
            layers=["to_q", "to_k", "ff.net.2", "proj_in"],
            seed=seed,
            dora=0.5 if kind == "dora" else None,
        )
    ours, theirs = (changed_by_loras(deepcopy(of), *files) for of in (quantized, stock))
    assert relative_error(ours, theirs) < 0.3  # 1 if they were not applied


def test_an_extension_can_read_the_weights_that_a_layer_computes_with() -> None:
    plain, layer = linear(64, 32, torch.bfloat16), linear(64, 32, torch.bfloat16)
    quantize(layer, "int8")
    assert (layer.weight.shape, layer.weight.dtype) == (plain.weight.shape, torch.bfloat16)
    assert layer.weight.untyped_storage().nbytes() <= 16
    keep_plain_weights(layer, kept=True)
    assert relative_error(layer.weight.float(), plain.weight.float()) < 0.01
    keep_plain_weights(layer, kept=False)
    assert layer.weight.untyped_storage().nbytes() <= 16


def test_an_offloaded_model_comes_back_from_pinned_copies(quantized: Modules) -> None:
    card = SimulatedCard(CPU, "cpu", torch.float32, torch.float32, "sdpa", 1)
    modules = deepcopy(quantized)
    expected, placement = predict(modules.unet), Placement(modules, card)
    placement.offload()
    placement.restore()
    assert torch.equal(predict(modules.unet), expected)
    eight_bits = [p for p in modules.unet.parameters() if p.dtype is torch.int8]
    assert card.bytes["peak"] > sum(p.nbytes for p in eight_bits) > 0
    assert placement.bytes_on_device == sum(
        parameter.nbytes
        for network in (modules.unet, modules.vae, *modules.text_encoders.networks)
        for parameter in network.parameters()
    )


def test_it_is_part_of_the_numeric_profile(device: Device, cpu: Device) -> None:
    ours, plain = (d.numeric_profile(Stage.BASE, 4, "demo") for d in (device, cpu))
    assert (ours.quantization, plain.quantization) == ("int8", "off")
    assert ours.name != plain.name


def test_a_device_on_which_a_layer_does_not_run_is_refused_by_name() -> None:
    assert quantization_problem("int8", CPU) == ""
    assert quantization_problem("int8", torch.device("meta")).startswith(
        "int8 does not run on meta ("
    )


def test_a_setting_that_can_t_be_met_stops_the_start() -> None:
    with pytest.raises(DeviceError, match="int2 does not run on cpu") as refused:
        open_device("cpu", precision="fp32", xformers=False, cpu_threads=1, quantization="int2")
    assert refused.value.subject == "MODEL_QUANTIZATION=int2"
    assert "MODEL_QUANTIZATION=off" in refused.value.remedy
