import logging
from importlib.util import find_spec

import pytest
import torch

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import DeviceError
from serve_app.runtime.memory.device import open_device


def test_a_promised_card_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    with pytest.raises(DeviceError, match="MODEL_DEVICE=cuda, but this process sees no CUDA"):
        open_device("cuda", precision=None, xformers=False, cpu_threads=1)
    with pytest.raises(DeviceError, match="MODEL_DEVICE=mps"):
        open_device("mps", precision=None, xformers=False, cpu_threads=1)


@pytest.mark.parametrize(
    ("precision", "dtype", "vae"),
    [
        (None, torch.float32, torch.float32),
        ("fp16", torch.float16, torch.float32),
        ("bf16", torch.bfloat16, torch.float32),
    ],
)
def test_the_vae_never_runs_in_half_precision(
    precision: str | None, dtype: torch.dtype, vae: torch.dtype
) -> None:
    device = open_device("cpu", precision=precision, xformers=False, cpu_threads=1)
    assert (device.dtype, device.vae_dtype) == (dtype, vae)


def test_the_profile_names_what_decides_bits() -> None:
    device = open_device("cpu", precision=None, xformers=False, cpu_threads=2)
    profile = device.numeric_profile(Stage.BASE, 8, "sdxl")
    assert (profile.lanes, profile.cpu_threads, profile.dtype) == (8, 2, "float32")
    assert profile.device.startswith("cpu ")
    assert profile.torch == torch.__version__


def test_xformers_that_do_not_run_give_one_line_and_sdpa(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="aura.runtime"):
        device = open_device("cpu", precision=None, xformers=True, cpu_threads=1)
    assert device.attention == "sdpa"
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert "PyTorch SDPA is used" in line
    assert "\n" not in line
    missing = find_spec("xformers") is None
    assert ("not installed" if missing else "does not run on cpu") in line
