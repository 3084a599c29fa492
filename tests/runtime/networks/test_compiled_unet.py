"""Which calls are compiled, by a compiler that only marks its results."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from serve_app.runtime.networks.compiled_unet import CompiledUNet
from serve_app.runtime.networks.compiler import compiler_problem

SHAPES = {(16, 16), (12, 20)}


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, rows: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return rows * self.scale


class Marked:
    """A compiled UNet whose results are known by their sign."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet

    def __call__(self, *args: Any, **options: Any) -> Any:
        return -self.unet(*args, **options)


def call(unet: Any, rows: int, shape: tuple[int, int], tokens: int = 77) -> bool:
    """Return whether the call was compiled."""
    result = unet(torch.ones(rows, 4, *shape), encoder_hidden_states=torch.ones(rows, tokens, 8))
    return bool((result < 0).all())


def test_only_the_aspect_sizes_one_chunk_and_powers_of_two_are_compiled() -> None:
    unet = CompiledUNet(Unet(), Marked, SHAPES, lambda: False)
    assert call(unet, 2, (16, 16))
    assert call(unet, 8, (12, 20))
    assert not call(unet, 2, (20, 12))
    assert not call(unet, 3, (16, 16))
    assert not call(unet, 2, (16, 16), tokens=154)


def test_a_batch_with_extensions_is_eager_and_the_next_one_compiled_again() -> None:
    worn: list[str] = []
    unet = CompiledUNet(Unet(), Marked, SHAPES, lambda: bool(worn))
    assert call(unet, 2, (16, 16))
    worn.append("ink")
    assert not call(unet, 2, (16, 16))
    worn.clear()
    assert call(unet, 2, (16, 16))


def test_both_networks_have_the_same_tensors_wherever_they_go() -> None:
    eager, copies = Unet(), []

    def compile(unet: Any) -> Any:
        copies.append(unet)
        return unet

    CompiledUNet(eager, compile, SHAPES, lambda: False)
    (copy,) = copies
    assert copy is not eager
    assert copy.scale is eager.scale
    eager.double()
    assert copy.scale.dtype is torch.float64


def test_a_call_is_ready_once_it_was_compiled_or_if_it_never_is() -> None:
    unet = CompiledUNet(Unet(), Marked, SHAPES, lambda: False)
    assert unet.is_ready((64, 64), 2)
    assert unet.is_ready((16, 16), 3)
    assert not unet.is_ready((16, 16), 2)
    call(unet, 2, (16, 16))
    assert unet.is_ready((16, 16), 2)
    assert not unet.is_ready((16, 16), 4)


def test_a_machine_without_a_compiler_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs a C++ compiler, and there is no g++ or clang++" in compiler_problem("cpu")
    monkeypatch.setenv("CXX", "none++")
    assert compiler_problem("cpu").endswith("there is no none++")
    assert "Apple" in compiler_problem("mps")
    for name in ("none++",):
        (tmp_path / name).touch(mode=0o755)
    assert compiler_problem("cpu") == ""
