"""The device: availability, dtypes, numeric profile, attention."""

import logging
from collections.abc import Callable
from importlib.util import find_spec

import diffusers
import peft
import pytest
import torch
import transformers

from serve_app.config.processor import has_bf16
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import DeviceError
from serve_app.runtime.memory.device import open_device


@pytest.mark.parametrize(
    ("name", "is_available"),
    [("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available)],
)
def test_a_gpu_that_is_not_available_is_refused(
    name: str, is_available: Callable[[], bool]
) -> None:
    if is_available():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(DeviceError) as refused:
        open_device(name, precision=None, xformers=False, cpu_threads=1)
    assert refused.value.subject == f"MODEL_DEVICE={name}"
    assert "set MODEL_DEVICE=cpu" in refused.value.remedy.replace("Set", "set")


@pytest.mark.parametrize(
    ("precision", "dtype", "vae"),
    [
        (None, torch.float32, torch.float32),
        ("fp16", torch.float16, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16 if has_bf16() else torch.float32),
    ],
)
def test_the_vae_never_runs_in_fp16_and_in_bf16_where_the_processor_computes_that(
    precision: str | None, dtype: torch.dtype, vae: torch.dtype
) -> None:
    device = open_device("cpu", precision=precision, xformers=False, cpu_threads=1)
    assert (device.dtype, device.vae_dtype) == (dtype, vae)


def test_the_profile_names_everything_that_decides_bits() -> None:
    device = open_device("cpu", precision=None, xformers=False, cpu_threads=2)
    profile = device.numeric_profile(Stage.BASE, 8, "sdxl")
    assert (profile.lanes, profile.cpu_threads, profile.dtype) == (8, 2, "float32")
    assert profile.device.startswith("cpu ")
    assert profile.torch == torch.__version__


def test_broken_xformers_give_one_warning_and_sdpa(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="aura.runtime"):
        device = open_device("cpu", precision=None, xformers=True, cpu_threads=1)
    assert device.attention == "sdpa"
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert "PyTorch SDPA is used" in line
    assert "\n" not in line
    missing = find_spec("xformers") is None
    assert ("not installed" if missing else "does not run on cpu") in line


def test_a_profile_names_the_libraries_that_run_the_networks() -> None:
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)
    libraries = device.numeric_profile(Stage.BASE, 4, "demo").libraries
    assert libraries == (
        f"diffusers {diffusers.__version__}",
        f"transformers {transformers.__version__}",
        f"peft {peft.__version__}",
    )
