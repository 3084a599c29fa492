"""A checkpoint's own scheduler, EDM among them: the images of stock pipelines over the same folder.

The demo's network stands in for those of Playground v2.5 and CosXL: it was not trained for their
noise, so its images mean nothing, but both sides must draw the same ones.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from serve_app.core.diffusion.samplers import Sampler, SigmaSpacing
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import ModelCache
from tests.support.checkpoints import edit_json, with_scheduler
from tests.support.demo_models import Engines
from tests.support.engine_runs import Heard, drain, run_images, sample_of, whole
from tests.support.reference_diffusers import Stock, base_pipeline, pipeline_image
from tests.support.reference_schedulers import EDM_SAMPLERS, stock_edm_scheduler
from tests.support.single_files import to_single_file

LEVELS = 2  # of 255
SPEC = ImageSpec(
    prompt="a red heart on a white background",
    seed=7,
    width=128,
    height=128,
    steps=5,
    guidance=5.0,
)
DISCRETE: dict[str, tuple[str, dict[str, Any], Sampler]] = {
    "euler a": ("EulerAncestralDiscreteScheduler", {}, Sampler.EULER_A),
    "euler trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, Sampler.EULER),
    "euler karras": (
        "EulerDiscreteScheduler",
        {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0},
        Sampler.EULER_KARRAS,
    ),
    "heun": ("HeunDiscreteScheduler", {}, Sampler.HEUN),
    "ddim": (
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        Sampler.DDIM,
    ),
    "ddim to the picture": (
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"},
        Sampler.DDIM,
    ),
    "dpm karras": (
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "euler_at_final": True},
        Sampler.DPMPP_2M_KARRAS,
    ),
    "dpm sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False},
        Sampler.DPMPP_2M_SDE,
    ),
    "dpm singlestep sde": (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_exponential_sigmas": True},
        Sampler.DPMPP_SDE_EXPONENTIAL,
    ),
    "unipc": ("UniPCMultistepScheduler", {}, Sampler.UNIPC),
    "lcm": ("LCMScheduler", {}, Sampler.LCM),
}
PLAYGROUND = {  # as published
    "algorithm_type": "dpmsolver++",
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sample_max_value": 1.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
}
COSXL = {
    "prediction_type": "v_prediction",
    "sigma_data": 1.0,
    "sigma_max": 120.0,
    "sigma_min": 0.002,
    "sigma_schedule": "exponential",
}
LATENTS = {
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    "scaling_factor": 0.5,
}
V_PREDICTION = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
EDM = {"playground": PLAYGROUND, "cosxl": COSXL}
QUICK = ("euler a", "dpm karras", "dpm sde", "ddim to the picture")
EACH_SAMPLER = [
    pytest.param(kind, sampler, marks=() if kind == "playground" and own else pytest.mark.long)
    for kind in EDM
    for sampler in EDM_SAMPLERS
    for own in [sampler.spacing is not SigmaSpacing.KARRAS]  # playground's own, already drawn
]


@dataclass(frozen=True)
class Pair:
    """A checkpoint folder, and both ways to draw with it."""

    checkpoint: Checkpoint
    ours: dict[Stage, Engine]
    stock: Any

    def distance(
        self, spec: ImageSpec, init_image: bytes | None = None, scheduler: Any = None
    ) -> int:
        noise = self.checkpoint.noise_config
        (picture,) = run_images(self.ours, [(spec, init_image)], noise)
        return distance(picture, pipeline_image(self.stock, spec, init_image, scheduler))


@pytest.fixture(scope="module")
def demo(checkpoints: dict[Stage, Checkpoint]) -> Path:
    return checkpoints[Stage.BASE].folder


def model_of(checkpoint: Checkpoint, cpu: Device) -> dict[Stage, Engine]:
    model = build_stage_model(checkpoint, cpu, images=2, strict=True)
    return {Stage.BASE: Engine(ModelCache.of(model), snapshot_every=10**9)}


@pytest.fixture(scope="module")
def edm(demo: Path, cpu: Device, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Return stand-ins for Playground v2.5 and for CosXL."""
    home = tmp_path_factory.mktemp("edm")
    playground = with_scheduler(
        demo, home / "playground", "EDMDPMSolverMultistepScheduler", PLAYGROUND
    )
    edit_json(playground / "vae/config.json", **LATENTS)
    cosxl = with_scheduler(demo, home / "cosxl", "EDMEulerScheduler", COSXL)
    pairs = {}
    for name, folder in (("playground", playground), ("cosxl", cosxl)):
        checkpoint = inspect(folder, Stage.BASE)
        pairs[name] = Pair(checkpoint, model_of(checkpoint, cpu), base_pipeline(folder))
    return pairs


def distance(ours: np.ndarray, theirs: np.ndarray) -> int:
    farthest = int(np.abs(ours.astype(np.int16) - theirs).max())
    print(f"farthest pixel: {farthest} of 255")
    return farthest


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in QUICK else pytest.mark.long)  # 2 s each
        for kind in DISCRETE
    ],
)
def test_the_default_sampler_is_the_folders_own_scheduler(
    demo: Path, engines: Engines, stock: Stock, tmp_path: Path, kind: str
) -> None:
    name, options, sampler = DISCRETE[kind]
    folder = with_scheduler(demo, tmp_path / "own", name, options)
    checkpoint = inspect(folder, Stage.BASE)
    assert (checkpoint.defaults.sampler, checkpoint.sampler_warnings) == (sampler, ())
    spec = replace(SPEC, sampler=checkpoint.defaults.sampler)
    own = getattr(diffusers, name).from_pretrained(folder, subfolder="scheduler")
    pair = Pair(checkpoint, engines(), stock.base)
    assert pair.distance(spec, scheduler=own) <= LEVELS


def test_the_comparison_would_notice_another_sampler(
    checkpoints: dict[Stage, Checkpoint], engines: Engines, stock: Stock
) -> None:
    """The control: one image by what a folder named, and by what was drawn for every folder."""
    demo = Pair(checkpoints[Stage.BASE], engines(), stock.base)
    for sampler in (Sampler.EULER_A, Sampler.DPMPP_2M_KARRAS, Sampler.EULER_TRAILING):
        assert demo.distance(SPEC, scheduler=stock.scheduler(sampler)) > 5 * LEVELS


def test_a_tcd_folder_is_drawn_by_the_sampler_that_is_nearest_to_stocks(
    demo: Path, engines: Engines, stock: Stock, tmp_path: Path
) -> None:
    folder = with_scheduler(demo, tmp_path / "tcd", "TCDScheduler", {})
    checkpoint = inspect(folder, Stage.BASE)
    own = diffusers.TCDScheduler.from_pretrained(folder, subfolder="scheduler")
    assert checkpoint.sampler_warnings
    spec = replace(SPEC, steps=4, guidance=1.0)
    theirs = pipeline_image(stock.base, spec, scheduler=own)
    means = {}
    for sampler in (checkpoint.defaults.sampler, Sampler.EULER_TRAILING, Sampler.LCM):
        noise = checkpoint.noise_config
        (picture,) = run_images(engines(), [(replace(spec, sampler=sampler), None)], noise)
        means[sampler] = float(np.abs(picture.astype(np.int16) - theirs).mean())
    print(f"mean distance, of 255: {means}")
    assert min(means, key=means.__getitem__) is Sampler.DDIM_TRAILING
    assert means[Sampler.DDIM_TRAILING] < 0.5
    assert means[Sampler.LCM] > 5  # the control


def test_a_folder_of_a_v_prediction_model_with_zero_terminal_snr_is_stocks(
    demo: Path, cpu: Device, tmp_path: Path
) -> None:
    folder = with_scheduler(demo, tmp_path / "v", "EulerDiscreteScheduler", V_PREDICTION)
    checkpoint = inspect(folder, Stage.BASE)
    pair = Pair(checkpoint, model_of(checkpoint, cpu), base_pipeline(folder))
    assert pair.distance(SPEC) <= LEVELS


@pytest.mark.parametrize(("kind", "sampler"), EACH_SAMPLER)
def test_an_edm_checkpoint_draws_what_stock_draws(
    edm: dict[str, Pair], kind: str, sampler: Sampler
) -> None:
    spec = replace(SPEC, sampler=sampler, negative_prompt="blur")
    assert edm[kind].distance(spec, scheduler=stock_edm_scheduler(sampler, EDM[kind])) <= LEVELS


@pytest.mark.parametrize("kind", EDM)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_edm_checkpoint_draws_by_its_own_scheduler(
    edm: dict[str, Pair], kind: str, guidance: float
) -> None:
    sampler = edm[kind].checkpoint.defaults.sampler
    assert sampler is {"playground": Sampler.DPMPP_2M, "cosxl": Sampler.EULER}[kind]
    spec = replace(SPEC, sampler=sampler, guidance=guidance, steps=18)
    assert edm[kind].distance(spec) <= LEVELS


@pytest.mark.parametrize("kind", EDM)
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_an_edm_checkpoint_continues_an_image_as_stock_does(
    edm: dict[str, Pair], photo: bytes, kind: str, strength: float
) -> None:
    spec = replace(SPEC, sampler=edm[kind].checkpoint.defaults.sampler, strength=strength)
    assert edm[kind].distance(replace(spec, steps=10), photo) <= LEVELS


MARKERS = {
    "playground": {
        "edm_mean": torch.tensor(LATENTS["latents_mean"]).view(1, 4, 1, 1),
        "edm_std": torch.tensor(LATENTS["latents_std"]).view(1, 4, 1, 1),
    },
    "cosxl": {
        "edm_vpred.sigma_max": torch.tensor(120.0),
        "edm_vpred.sigma_min": torch.tensor(0.002),
    },
}


@pytest.mark.parametrize("kind", EDM)
def test_a_single_file_is_known_as_edm_by_its_marker_tensors(
    demo: Path, edm: dict[str, Pair], cpu: Device, tmp_path: Path, kind: str
) -> None:
    """Stock is given the folder with the right configs; ours only plain SDXL's and the file."""
    file = to_single_file(demo, tmp_path / "model.safetensors", extra=MARKERS[kind])
    checkpoint = inspect(file, Stage.BASE, configs=demo)
    pair = Pair(checkpoint, model_of(checkpoint, cpu), edm[kind].stock)
    assert pair.distance(replace(SPEC, sampler=checkpoint.defaults.sampler)) <= LEVELS


@pytest.mark.parametrize("sampler", [Sampler.DPMPP_2M, Sampler.EULER_A, Sampler.HEUN_KARRAS])
def test_an_edm_image_has_the_same_bytes_in_a_batch_and_continued_from_a_snapshot(
    edm: dict[str, Pair], sampler: Sampler
) -> None:
    noise, models = edm["playground"].checkpoint.noise_config, edm["playground"].ours
    spec = replace(SPEC, sampler=sampler)
    (alone,) = run_images(models, [(spec, None)], noise)
    clock = iter(range(10**6))  # one second per reading: every step is late enough for a snapshot
    cache = models[Stage.BASE].models
    engine = Engine(cache, snapshot_every=1, clock=lambda: next(clock))
    together, resumed = Heard(), Heard()
    sample, other = sample_of(spec, noise=noise), replace(spec, seed=8, steps=9, guidance=1.0)
    beside = sample_of(replace(other, sampler=Sampler.EULER), "other", noise=noise)
    for each, listener in ((beside, Heard()), (sample, together)):
        engine.submit(each, whole(each), listener)
    drain(engine)
    middle = replace(together.snapshots[2], id="resumed")
    elsewhere = Engine(cache, snapshot_every=10**9)
    elsewhere.submit(middle, whole(middle), resumed)
    drain(elsewhere)
    assert together.picture.tobytes() == alone.tobytes() == resumed.picture.tobytes()
