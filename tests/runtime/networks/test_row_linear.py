"""Layers of one line per row, computed a row at a time."""

import pytest
import torch
from torch import nn

from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.memory.device import open_device
from serve_app.runtime.networks.loading import load
from serve_app.runtime.networks.row_linear import RowLinear, become_row_linear, compute_by_row


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
    compute_by_row(unet)
    by_row = {name for name, module in unet.named_modules() if type(module) is RowLinear}
    assert by_row == {name for name, count in dimensions.items() if count == 2}
    assert by_row
