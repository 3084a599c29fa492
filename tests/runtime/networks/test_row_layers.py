"""Layers that compute a row at a time: those of one line per row, activations, group norms."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.row_layers import (
    RowGEGLU,
    RowGroupNorm,
    RowLinear,
    RowSiLU,
    become_row_linear,
    compute_by_row,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_beside_any_number_of_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = RowLinear(320, 1280, dtype=dtype)
    rows = torch.randn(16, 320, dtype=dtype)
    together = layer(rows)
    assert together.shape == (16, 1280)
    for count in (1, 2, 3, 8):
        assert torch.equal(layer(rows[:count]), together[:count])
    stock = nn.functional.linear(rows, layer.weight, layer.bias)
    assert torch.allclose(together, stock, atol=1e-5 if dtype is torch.float32 else 0.05)


@pytest.mark.parametrize("skipped", [1, 3, 13])
def test_where_a_file_s_weights_begin_makes_no_difference(skipped: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1280, 320, generator=generator)
    rows = torch.randn(4, 320, generator=generator)
    results = []
    for elements in (0, skipped):
        memory = torch.empty(weight.numel() + elements)
        layer = nn.Linear(320, 1280, bias=False)
        layer.weight.data = memory[elements:].view_as(weight).copy_(weight)
        become_row_linear(layer)
        results.append(layer(rows))
    assert torch.equal(*results)


@pytest.mark.parametrize("stage", Stage)
def test_the_layers_of_one_line_per_row_are_those_whose_input_is_no_image(
    checkpoints: dict[Stage, Checkpoint], stage: Stage
) -> None:
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)
    unet = load(checkpoints[stage], device).unet
    dimensions: dict[str, int] = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: dimensions.update({name: inputs[0].dim()})
            )
    config = unet.config
    ids = 6 if stage is Stage.BASE else 5
    added = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
    with torch.inference_mode():
        unet(
            torch.zeros(2, 4, 16, 16),
            torch.zeros(2),
            torch.zeros(2, 77, config.cross_attention_dim),
            added_cond_kwargs={
                "text_embeds": torch.zeros(2, added),
                "time_ids": torch.zeros(2, ids),
            },
        )
    compute_by_row(unet, device)
    by_row = {name for name, module in unet.named_modules() if type(module) is RowLinear}
    assert by_row == {name for name, count in dimensions.items() if count == 2}
    assert by_row


@pytest.fixture(params=[1, 2, 3, 4, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


ROWS = 6
Layer = Callable[[torch.Tensor], torch.Tensor]
LAYERS: dict[str, tuple[Layer, Layer, tuple[int, ...]]] = {  # with stock's, and an input
    "SiLU": (RowSiLU(), nn.functional.silu, (ROWS, 40, 33, 31)),
    "gelu": (RowGEGLU(8, 8).gelu, nn.functional.gelu, (ROWS, 231, 177)),
    "group norm": (RowGroupNorm(8, 40), nn.GroupNorm(8, 40), (ROWS, 40, 33, 33)),
    "small group norm": (RowGroupNorm(8, 40), nn.GroupNorm(8, 40), (ROWS, 40, 16, 16)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_any_slot_and_number_whatever_the_threads(
    threads: int, name: str, dtype: torch.dtype
) -> None:
    layer, stock, shape = LAYERS[name]
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    for module in (layer, stock):
        if isinstance(module, nn.Module):
            module.to(dtype)
    together = layer(x)
    assert together.stride() == x.stride()
    assert torch.allclose(together, stock(x), atol=1e-5 if dtype is torch.float32 else 0.05)
    for count in (1, 2, 5):
        assert torch.equal(layer(x[:count]), together[:count])
        assert torch.equal(layer(x[-count:]), together[-count:])


@pytest.mark.parametrize("cpu_threads", [1, 4])
def test_activations_compute_by_row_where_threads_split_them(
    checkpoints: dict[Stage, Checkpoint], cpu: Device, cpu_threads: int
) -> None:
    unet = load(checkpoints[Stage.BASE], cpu).unet
    compute_by_row(unet, replace(cpu, cpu_threads=cpu_threads))
    kinds = {type(module).__name__ for module in unet.modules()}
    activations = {"RowSiLU", "RowGEGLU"} if cpu_threads > 1 else {"SiLU", "GEGLU"}
    assert kinds & {"SiLU", "GEGLU", "RowSiLU", "RowGEGLU"} == activations
    assert {"RowGroupNorm", "RowLinear"} <= kinds
