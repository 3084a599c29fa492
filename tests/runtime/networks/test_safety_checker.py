"""The image safety filter against the stock checker behind the stock image processor."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil

from serve_app.core.diffusion.sample import stage_segments
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import CheckpointError, SafetyBlock
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, check_safety_checker
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.quiet import diffusers
from serve_app.runtime.networks.safety_checker import ImageSafetyChecker
from serve_app.runtime.networks.vae import RgbImage
from tests.support.engine_runs import Heard, drain, run_images, sample_of

SIDE = 32
SPEC = ImageSpec(prompt="a", seed=3, width=128, height=128, steps=2, guidance=1)


def make_image(seed: int, width: int = 90, height: int = 60) -> RgbImage:
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return coarse.repeat(10, axis=0).repeat(10, axis=1)


def checker_of(folder: Path, forbidden: RgbImage) -> Path:
    """Save a small checker of random weights whose one concept is an image."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
    }
    stock = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    checker_class = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker
    checker = checker_class(CLIPConfig(vision_config=vision, projection_dim=16)).eval()
    with torch.no_grad():
        pixels = stock(forbidden, return_tensors="pt").pixel_values
        checker.concept_embeds[0] = checker.visual_projection(checker.vision_model(pixels)[1])[0]
        checker.concept_embeds_weights.fill_(2.0)  # out of reach
        checker.concept_embeds_weights[0] = 0.998
        checker.special_care_embeds_weights.fill_(2.0)
    checker.save_pretrained(folder, safe_serialization=True)
    stock.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checker_of(tmp_path / "checker", make_image(0))


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64), (200, 70), (30, 20)])
def test_an_image_is_preprocessed_as_stock_does(
    folder: Path, cpu: Device, size: tuple[int, int]
) -> None:
    ours = ImageSafetyChecker(folder, cpu).preprocess(make_image(1, *size))
    stock = CLIPImageProcessorPil.from_pretrained(folder)
    theirs = stock(make_image(1, *size), return_tensors="pt").pixel_values
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_images_near_a_concept_are_refused_and_no_others(folder: Path, cpu: Device) -> None:
    check_safety_checker(folder)
    checker = ImageSafetyChecker(folder, cpu)
    assert checker.refuses_image(make_image(0))
    assert not any(checker.refuses_image(make_image(seed)) for seed in range(1, 6))


def test_a_refused_image_fails_with_a_safety_block(
    tmp_path: Path, cpu: Device, checkpoints: dict[Stage, Checkpoint]
) -> None:
    def engine(safety: ImageSafetyChecker | None) -> Engine:
        model = build_stage_model(
            checkpoints[Stage.BASE], cpu, images=1, strict=True, safety=safety
        )
        return Engine(ModelCache.of(model), snapshot_every=1)

    (forbidden,) = run_images({Stage.BASE: engine(None)}, [(SPEC, None)])
    careful = engine(ImageSafetyChecker(checker_of(tmp_path / "checker", forbidden), cpu))
    listener = Heard()
    sample = sample_of(SPEC)
    careful.submit(sample, stage_segments(sample.schedule, 1.0, refiner=False)[0], listener)
    drain(careful)
    assert isinstance(listener.failed.error, SafetyBlock)


@pytest.mark.parametrize("breakage", ["no folder", "no config", "pickle", "truncated"])
def test_a_broken_checker_is_refused_before_anything_starts(folder: Path, breakage: str) -> None:
    weights = folder / "model.safetensors"
    if breakage == "no folder":
        folder = folder / "missing"
    elif breakage == "no config":
        (folder / "config.json").unlink()
    elif breakage == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    else:
        weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError) as refused:
        check_safety_checker(folder)
    assert refused.value.subject == str(folder)


def test_mean_and_std_come_from_the_folder(folder: Path, cpu: Device) -> None:
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    ours = ImageSafetyChecker(folder, cpu).preprocess(np.full((40, 40, 3), 255, np.uint8))
    assert torch.allclose(ours, torch.ones_like(ours))
