"""What single files say of their noise and latents by marker tensors and metadata."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serve_app.core.diffusion.samplers import Sampler, SigmaSpacing
from serve_app.core.diffusion.schedule import EdmNoise, NoiseConfig
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.file_markers import FileMarkers, LatentScaling, read_markers
from serve_app.runtime.checkpoints.safetensors_header import read_header

MEAN, STD = (-1.65625, 1.8828125, -1.3828125, 2.515625), (8.5, 5.90625, 6.5625, 5.21875)
CONFIGS = CheckpointScheduler(
    NoiseConfig(timestep_spacing="leading"), Sampler.DPMPP_2M, ("a warning",)
)


def markers(
    home: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> FileMarkers:
    file = home / "model.safetensors"
    save_file({"other": torch.zeros(3), **tensors}, file, metadata)
    return read_markers(file, read_header(file, file.name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_playground_brings_its_latents_in_any_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    found = markers(
        tmp_path,
        {
            "edm_mean": torch.tensor(MEAN, dtype=dtype).view(1, 4, 1, 1),
            "edm_std": torch.tensor(STD, dtype=dtype).view(1, 4, 1, 1),
        },
    )
    assert found.latents == LatentScaling(0.5, MEAN, STD)
    scheduler = found.over(CONFIGS)
    assert (scheduler.noise.edm, scheduler.sampler) == (EdmNoise(), Sampler.DPMPP_2M)
    assert scheduler.warnings == ()


def test_cosxl_states_its_range(tmp_path: Path) -> None:
    found = markers(tmp_path, {"edm_vpred.sigma_max": torch.tensor(96.0)})
    noise = found.over(CONFIGS).noise
    assert noise.prediction_type == "v_prediction"
    assert noise.edm == EdmNoise(0.002, 96.0, 1.0, spacing=SigmaSpacing.EXPONENTIAL)
    ends = {"edm_vpred.sigma_max": torch.tensor(96.0), "edm_vpred.sigma_min": torch.tensor(0.5)}
    edm = markers(tmp_path, ends).edm
    assert edm is not None
    assert (edm.sigma_min, edm.sigma_max) == (0.5, 96.0)


def test_a_file_that_says_nothing_leaves_the_scheduler_of_the_configs(tmp_path: Path) -> None:
    assert markers(tmp_path, {}).over(CONFIGS) == CONFIGS


@pytest.mark.parametrize(("stated", "read"), [("v", "v_prediction"), ("Epsilon", "epsilon")])
def test_the_metadata_states_the_prediction_type(tmp_path: Path, stated: str, read: str) -> None:
    found = markers(tmp_path, {}, {"modelspec.prediction_type": stated})
    assert found == FileMarkers(read)
    assert found.over(CONFIGS).noise.prediction_type == read


@pytest.mark.parametrize(
    ("tensors", "metadata", "problem"),
    [
        ({}, {"modelspec.prediction_type": "flow"}, "modelspec.prediction_type='flow'"),
        (
            {"edm_mean": torch.zeros(3), "edm_std": torch.ones(4)},
            {},
            "holds 3 values in edm_mean, where 4 are wanted",
        ),
        (
            {"edm_mean": torch.zeros(4), "edm_std": torch.zeros(4)},
            {},
            "has latents that can't be: edm_mean=",
        ),
        ({"edm_vpred.sigma_max": torch.zeros(2)}, {}, "holds 2 values in edm_vpred.sigma_max"),
        ({"edm_vpred.sigma_max": torch.tensor(torch.nan)}, {}, "edm_vpred.sigma_max=nan"),
        ({"edm_vpred.sigma_max": torch.tensor(9)}, {}, "holds edm_vpred.sigma_max as I64"),
    ],
)
def test_a_marker_that_is_not_understood_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], problem: str
) -> None:
    with pytest.raises(CheckpointError, match=problem):
        markers(tmp_path, tensors, metadata)
