from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from serve_app.bench.random_checkpoint import SDXL_BASE, write_configs, write_random_checkpoint
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OperatorError
from serve_app.runtime.checkpoints.checkpoint import inspect
from tests.support import sdxl_sizes
from tests.support.tiny_checkpoints import TINY, UNET_OF_STAGE

CONFIGS = TINY | {"unet": TINY["unet"] | UNET_OF_STAGE[Stage.BASE]}


def test_a_random_checkpoint_is_whole_and_its_values_neither_vanish_nor_overflow(
    tmp_path: Path,
) -> None:
    folder = write_random_checkpoint(tmp_path / "random", CONFIGS)
    assert inspect(folder, Stage.BASE).name == "random"
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.dtype is torch.float16 for tensor in tensors.values())
    assert bool((tensors["conv_norm_out.weight"] == 1).all())
    assert not tensors["conv_in.bias"].any()
    inputs = 4 * 3 * 3
    assert float(tensors["conv_in.weight"].float().std()) == pytest.approx(inputs**-0.5, rel=0.2)


def test_the_full_size_has_the_parameters_of_sdxl(tmp_path: Path) -> None:
    specs = write_configs(tmp_path / "full")
    sizes = {
        network: sum(prod(spec.shape) for spec in tensors) for network, tensors in specs.items()
    }
    assert sizes == sdxl_sizes.BASE_PARAMETERS


def test_a_disk_without_room_is_an_error_before_anything_large_is_written(tmp_path: Path) -> None:
    huge = SDXL_BASE["unet"] | {"block_out_channels": [32 * 20 * 90] * 3}
    with pytest.raises(OperatorError, match=r"GB free, and a checkpoint of .* is made there"):
        write_random_checkpoint(tmp_path / "huge", SDXL_BASE | {"unet": huge})
    assert not list(tmp_path.rglob("*.safetensors"))
