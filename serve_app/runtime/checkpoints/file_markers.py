"""What a single file says of its noise and its latents, over what the configs beside it say.

Marker tensors: `v_pred` and `ztsnr` of v-prediction fine-tunes, `edm_vpred.*` of CosXL, `edm_mean`
and `edm_std` of Playground v2.5. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from serve_app.core.diffusion.samplers import Sampler, SigmaSpacing
from serve_app.core.diffusion.schedule import EdmNoise
from serve_app.core.diffusion.scheduler_config import CheckpointScheduler
from serve_app.core.diffusion.spec import LATENT_CHANNELS
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.safetensors_header import Header
from serve_app.runtime.checkpoints.tensor_values import read_values

_PREDICTION_TYPES = {  # by "modelspec.prediction_type"
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
}
_COSXL = EdmNoise(0.002, 120.0, sigma_data=1.0, spacing=SigmaSpacing.EXPONENTIAL)
_PLAYGROUND = EdmNoise(0.002, 80.0, sigma_data=0.5)
_PLAYGROUND_SCALING = 0.5


@dataclass(frozen=True, slots=True)
class LatentScaling:
    """How a VAE's latents are normalized for the UNet: the fields of its config.json."""

    scaling_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FileMarkers:
    """The statements of a single file; None and False where it says nothing."""

    prediction_type: str | None = None
    zero_snr: bool = False
    edm: EdmNoise | None = None
    sampler: Sampler | None = None
    latents: LatentScaling | None = None

    def over(self, scheduler: CheckpointScheduler) -> CheckpointScheduler:
        """Return the scheduler of the configs with the statements of the file in their place."""
        noise = scheduler.noise
        if self.prediction_type is not None:
            noise = replace(noise, prediction_type=self.prediction_type)
        if self.zero_snr:
            # Only trailing timesteps reach zero SNR: Lin et al. 2023, section 3.3.
            noise = replace(noise, rescale_betas_zero_snr=True, timestep_spacing="trailing")
        if self.edm is None or self.sampler is None:
            return replace(scheduler, noise=noise)
        return CheckpointScheduler(replace(noise, edm=self.edm), self.sampler)


def read_markers(path: Path, header: Header) -> FileMarkers:
    """Return what a file says of itself. Raises `CheckpointError` for what is not understood."""
    names = header.shapes.keys()
    if "edm_mean" in names and "edm_std" in names:
        return FileMarkers(
            "epsilon", edm=_PLAYGROUND, sampler=Sampler.DPMPP_2M, latents=_latents(path)
        )
    if "edm_vpred.sigma_max" in names:
        highest = _number(path, "edm_vpred.sigma_max")
        has_lowest = "edm_vpred.sigma_min" in names
        lowest = _number(path, "edm_vpred.sigma_min") if has_lowest else _COSXL.sigma_min
        if not 0 < lowest < highest < inf:
            raise CheckpointError(
                f"has a range of noise that can't be: edm_vpred.sigma_min={lowest:g}, "
                f"edm_vpred.sigma_max={highest:g}"
            )
        edm = replace(_COSXL, sigma_min=lowest, sigma_max=highest)
        return FileMarkers("v_prediction", edm=edm, sampler=Sampler.EULER)
    prediction_type = "v_prediction" if "v_pred" in names else _stated_type(header.metadata)
    return FileMarkers(prediction_type, zero_snr="ztsnr" in names)


def _stated_type(metadata: Mapping[str, str]) -> str | None:
    stated = metadata.get("modelspec.prediction_type", "").lower()
    if stated and stated not in _PREDICTION_TYPES:
        raise CheckpointError(
            f"has modelspec.prediction_type={stated!r} in its metadata; supported: "
            f"{', '.join(_PREDICTION_TYPES)}"
        )
    return _PREDICTION_TYPES.get(stated)


def _number(path: Path, name: str) -> float:
    values = read_values(path, name)
    if len(values) != 1:
        raise CheckpointError(f"holds {len(values)} values in {name}, where 1 is wanted")
    return values[0]


def _latents(path: Path) -> LatentScaling:
    mean, std = read_values(path, "edm_mean"), read_values(path, "edm_std")
    for name, values in (("edm_mean", mean), ("edm_std", std)):
        if len(values) != LATENT_CHANNELS:
            raise CheckpointError(
                f"holds {len(values)} values in {name}, where {LATENT_CHANNELS} are wanted"
            )
    if not all(0 < value < inf for value in std) or not all(-inf < value < inf for value in mean):
        raise CheckpointError(f"has latents that can't be: edm_mean={mean}, edm_std={std}")
    return LatentScaling(_PLAYGROUND_SCALING, mean, std)
