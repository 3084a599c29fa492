"""Models that do not fit, as values: each with the first of the guide's measures that helps."""

from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.args import AppArgs
from serve_app.config import read_config
from serve_app.core.spec import Stage
from serve_app.doctor.finding import Finding, fail, fine, skip, warn
from serve_app.doctor.graphics import Card
from serve_app.doctor.memory import Replica, Weights
from serve_app.doctor.room import Load, check_gpus, check_ram, check_vram, replicas_of
from tests.doctor.conftest import GIB
from tests.doctor.test_memory import BASE, REFINER, base, refiner


def card(total: float, free: float | None = None, *, name: str = "NVIDIA RTX") -> Card:
    free = total if free is None else free
    return Card(name, int(total * GIB), int(free * GIB), (8, 6), bf16=True)


def load(*replicas: Replica, images: int = 4, precision: str = "fp16") -> Load:
    return Load(replicas, images, precision, vae_half=True)


SHARED = (base(0.5), refiner(0.5))


@pytest.mark.parametrize(
    ("asked", "there", "finding"),
    [
        (
            load(base()),
            [card(16)],
            fine(
                "memory",
                "base needs 10.4 GiB (fp16, 4 images together), and the NVIDIA RTX has 16.0 GiB, "
                "16.0 GiB of it free",
            ),
        ),
        (
            load(base(), precision="fp32"),
            [card(16)],
            warn(
                "memory",
                "base needs 19.9 GiB (fp32, 4 images together), and the NVIDIA RTX has 16.0 GiB: "
                "to have room, fewer images would be made at a time, or all more slowly",
                "MODEL_PRECISION=fp16",
            ),
        ),
        (
            load(base(models=2)),
            [card(16)],
            warn(
                "memory",
                "base needs 16.9 GiB (fp16, 4 images together, 2 models in memory), and the NVIDIA "
                "RTX has 16.0 GiB: to have room, fewer images would be made at a time, or all more "
                "slowly",
                "MODELS_IN_MEMORY=1",
            ),
        ),
        (
            load(base(models=2), precision="fp32"),
            [card(19)],
            warn(
                "memory",
                "base needs 32.8 GiB (fp32, 4 images together, 2 models in memory), and the NVIDIA "
                "RTX has 19.0 GiB: to have room, fewer images would be made at a time, or all more "
                "slowly",
                "MODEL_PRECISION=fp16",
            ),
        ),
        (
            load(base(), images=16),
            [card(12)],
            warn(
                "memory",
                "base needs 14.9 GiB (fp16, 16 images together), and the NVIDIA RTX has 12.0 GiB: "
                "to have room, fewer images would be made at a time, or all more slowly",
                "MODEL_MAX_BATCH_SIZE=8",
            ),
        ),
        (
            load(base(), images=1),
            [card(8)],
            warn(
                "memory",
                "base needs 9.3 GiB (fp16, one image at a time), and the NVIDIA RTX has 8.0 GiB: "
                "to have room, fewer images would be made at a time, or all more slowly",
                "ENABLE_XFORMERS=1",
            ),
        ),
        (
            load(base(), precision="fp32"),
            [card(10)],
            warn(
                "memory",
                "base needs 19.9 GiB (fp32, 4 images together), and the NVIDIA RTX has 10.0 GiB: "
                "to have room, fewer images would be made at a time, or all more slowly",
                "MODEL_PRECISION=fp16",
            ),
        ),
        (
            load(*SHARED),
            [card(24)],
            fine(
                "memory",
                "base and refiner need 20.1 GiB (fp16, 4 images together), and the NVIDIA RTX has "
                "24.0 GiB, 24.0 GiB of it free",
            ),
        ),
        (
            load(*SHARED),
            [card(12)],
            warn(
                "memory",
                "base and refiner need 20.1 GiB (fp16, 4 images together), and the NVIDIA RTX has "
                "12.0 GiB: to have room, fewer images would be made at a time, or all more slowly",
                "MODEL_REFINER_CHECKPOINT_DIR=",
            ),
        ),
        (
            load(*SHARED),
            [card(8)],
            warn(
                "memory",
                "base and refiner need 20.1 GiB (fp16, 4 images together), and the NVIDIA RTX has "
                "8.0 GiB: to have room, fewer images would be made at a time, or all more slowly",
                "MODEL_MAX_BATCH_SIZE=1",
            ),
        ),
        (
            load(base()),
            [card(24, 10)],
            warn(
                "memory",
                "base needs 10.4 GiB (fp16, 4 images together), and the NVIDIA RTX has 24.0 GiB, "
                "but other processes leave only 10.0 GiB of it free",
                "MODEL_MAX_BATCH_SIZE=2",
            ),
        ),
        (
            load(base()),
            [card(24, 3)],
            warn(
                "memory",
                "base needs 10.4 GiB (fp16, 4 images together), and the NVIDIA RTX has 24.0 GiB, "
                "but other processes leave only 3.0 GiB of it free",
                "nvidia-smi",
            ),
        ),
        (
            load(base(), refiner()),
            [card(24), card(8, name="NVIDIA RTX 3070")],
            warn(
                "memory",
                "refiner needs 9.6 GiB (fp16, 4 images together), and the NVIDIA RTX 3070 has 8.0 "
                "GiB: to have room, fewer images would be made at a time, or all more slowly",
                "MODEL_MAX_BATCH_SIZE=1",
            ),
        ),
        (
            load(base(), refiner()),
            [card(24)],
            fine(
                "memory",
                "base needs 10.4 GiB (fp16, 4 images together), and the NVIDIA RTX has 24.0 GiB, "
                "24.0 GiB of it free",
            ),
        ),
    ],
)
def test_vram(asked: Load, there: list[Card], finding: Finding) -> None:
    assert check_vram(asked, there) == finding


@pytest.mark.parametrize(
    ("asked", "cards", "finding"),
    [
        (load(base(), refiner()), 2, fine("gpus", "2 replicas ask Ray for 2 GPUs, of 2")),
        (load(*SHARED), 1, fine("gpus", "2 replicas ask Ray for 1 GPUs, of 1")),
        (
            load(base(), base(), base()),
            2,
            fail(
                "gpus",
                "3 replicas ask Ray for 3 GPUs, and there are 2: the rest would wait for ever",
                '"${EDITOR:-vi}" serve_config.yaml',
            ),
        ),
    ],
)
def test_gpus(asked: Load, cards: int, finding: Finding) -> None:
    assert check_gpus(asked, [card(24)] * cards, "serve_config.yaml") == finding


@pytest.mark.parametrize(
    ("asked", "free", "finding"),
    [
        (
            load(base(), images=2, precision="fp32"),
            32,
            fine(
                "memory",
                "the models need 18.4 GiB of memory (fp32, 2 images together), and 32.0 GiB can be "
                "taken",
            ),
        ),
        (
            load(base(), images=2, precision="fp32"),
            18,
            fail(
                "memory",
                "the models need 18.4 GiB of memory (fp32, 2 images together), and 18.0 GiB can be "
                "taken",
                "MODEL_MAX_BATCH_SIZE=1",
            ),
        ),
        (
            load(base(), refiner(), images=1, precision="fp32"),
            20,
            fail(
                "memory",
                "the models need 33.7 GiB of memory (fp32, one image at a time), and 20.0 GiB can "
                "be taken",
                "MODEL_REFINER_CHECKPOINT_DIR=",
            ),
        ),
        (
            load(base(), images=1, precision="fp32"),
            8,
            fail(
                "memory",
                "the models need 17.7 GiB of memory (fp32, one image at a time), and 8.0 GiB can "
                "be taken",
                "MODEL_CHECKPOINT_DIR=",
            ),
        ),
        (
            load(base()),
            0,
            skip("memory", "how much memory is free can't be told on this system"),
        ),
    ],
)
def test_ram(asked: Load, free: int, finding: Finding) -> None:
    assert check_ram(replace(asked, vae_half=False), free * GIB) == finding


def test_a_config_says_how_many_replicas_start_and_what_each_asks_for() -> None:
    args = AppArgs.model_validate(
        {"base": {"min_replicas": 2, "max_replicas": 5}, "refiner": {"num_gpus": 0.25}}
    )
    stages = {Stage.BASE: Weights(BASE, 1024), Stage.REFINER: Weights(REFINER, 1024)}
    assert replicas_of(args, stages, "cuda", 3) == (base(), base(), refiner(0.25))
    assert replicas_of(args, {Stage.BASE: Weights(BASE, 1024)}, "cpu", 0) == (base(0), base(0))


def test_one_card_is_shared_by_the_stages_of_the_shipped_config() -> None:
    _, _, args = read_config(Path(__file__).parents[2] / "serve_config.yaml")
    stages = {Stage.BASE: Weights(BASE, 1024), Stage.REFINER: Weights(REFINER, 1024)}
    assert replicas_of(args, stages, "cuda", 1) == SHARED
    assert replicas_of(args, stages, "cuda", 2) == (base(), refiner())
