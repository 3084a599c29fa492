"""A checkpoint with one NaN: the service does not start with it, and says where it is."""

import shutil
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file

from serve_app.cli.console import REFUSED
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.checkpoints.bundled import demo_folder
from tests.e2e.chaos.measure import sampled
from tests.e2e.chaos.report import report
from tests.support.checkpoints import change_tensors
from tests.support.running_up import RunningUp

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(300)]

UNET, VAE = "unet", "vae"


@pytest.mark.parametrize(
    ("network", "tensor", "mode"),
    [
        (UNET, "conv_out.bias", "fast"),
        (VAE, "decoder.conv_out.bias", "strict"),
        (VAE, "decoder.conv_out.bias", "fast"),
    ],
)
def test_one_nan_weight_is_named_at_the_start_and_makes_no_picture(
    environment: dict[str, str], tmp_path: Path, network: str, tensor: str, mode: str
) -> None:
    folder = tmp_path / "sdxl"
    shutil.copytree(demo_folder(Stage.BASE), folder)
    (file,) = (folder / network).glob("*.safetensors")
    weights = load_file(file)[tensor]
    weights.view(-1)[1] = torch.nan
    change_tensors(file, change={tensor: weights})
    settings = {"MODEL_CHECKPOINT_DIR": str(folder), "MODEL_DETERMINISM": mode}

    def ask(up: RunningUp) -> int:
        body = {"prompt": "a red circle", "steps": 4, "imageCount": 1}
        return httpx.post(f"{up.address}/generate", json=body, timeout=60).status_code

    with RunningUp(environment, tmp_path, **settings) as up, sampled(lambda: ask(up)) as answers:
        status = up.process.wait(240)
    statuses = {answer for _, answer in answers if answer is not None}
    named = [line for line in up.stderr.splitlines() if tensor in line]
    report(
        f"one NaN in the {network.upper()}'s weights, {mode} mode",
        f"answers while it starts: {statuses or 'none'}; exit status {status}; "
        f"`{' '.join(named).replace(str(tmp_path), '')}`",
        "never a success; the file and tensor named at load",
    )
    assert 201 not in statuses
    assert status == REFUSED
    assert any(
        f"{network}/{file.name}, whose tensor {tensor} is damaged: 1 NaN" in s for s in named
    )
