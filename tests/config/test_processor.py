"""What a processor computes, read from Linux' own list and compared with what torch finds."""

import platform
import sys
from pathlib import Path

import pytest
import torch

from serve_app.config.catalog import precision_of
from serve_app.config.processor import has_bf16
from serve_app.config.settings import Settings

X86 = (
    "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx512f {}\nbugs\t\t: sysret_ss_attrs\n"
)
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("avx512_bf16 vnni"), True),
        (X86.format("amx_tile amx_bf16"), True),
        (X86.format("avx512_vnni"), False),
        (ARM.format("bf16 i8mm"), True),
        (ARM.format("i8mm"), False),
        ("", False),
    ],
)
def test_bf16_is_one_of_the_processors_flags(tmp_path: Path, text: str, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert has_bf16(file) is expected
    assert not has_bf16(tmp_path / "missing")


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="torch says it of x86 only"
)
def test_torch_agrees_about_this_processor() -> None:
    supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert has_bf16() is supported


@pytest.mark.parametrize(
    ("settings", "device", "has_it", "precision"),
    [
        ({"MODEL_PRECISION": "auto"}, "cpu", True, "bf16"),
        ({"MODEL_PRECISION": "auto"}, "cpu", False, "fp32"),
        ({"MODEL_PRECISION": "auto"}, "cuda", False, "fp16"),
        ({"MODEL_PRECISION": "auto"}, "mps", False, "fp16"),
        ({"MODEL_PRECISION": "auto", "MODEL_CHECKPOINT_DIR": ""}, "cpu", True, "fp32"),
        ({}, "cpu", True, "fp32"),
        ({}, "cuda", True, "fp16"),
        ({"MODEL_PRECISION": "bf16"}, "cpu", False, "bf16"),
    ],
)
def test_auto_takes_bf16_on_a_processor_that_computes_it_but_not_for_the_demo(
    settings: dict[str, str], device: str, has_it: bool, precision: str
) -> None:
    read = Settings.read({"MODEL_CHECKPOINT_DIR": "./sdxl", **settings})
    assert precision_of(read, device, cpu_has_bf16=has_it) == precision
