"""Models that do not fit, as values: each with the first of the guide's measures that helps."""

from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.config.app_args import AppArgs
from serve_app.config.serve_config import read_config
from serve_app.doctor.checks.capacity import (
    Load,
    check_copies,
    check_gpus,
    check_ram,
    check_vram,
    replicas_of,
)
from serve_app.doctor.checks.gpu_memory import Replica
from serve_app.doctor.checks.gpu_probe import Card
from serve_app.doctor.finding import Finding, fail, fine, skip, warn
from tests.doctor.checks.test_gpu_memory import ONE, POLISH, base, both, refiner
from tests.doctor.conftest import GIB


def card(total: float, free: float | None = None, *, name: str = "NVIDIA RTX") -> Card:
    free = total if free is None else free
    return Card(name, int(total * GIB), int(free * GIB), (8, 6), bf16=True)


def load(*replicas: Replica, images: int = 4, precision: str = "fp16") -> Load:
    return Load(replicas, images, precision, vae_half=True)


SHARED = (base(0.5), refiner(0.5))
COPIES = (
    "copies of the models that take turns on the card need {} GiB of the machine's own memory, "
    "which can't be swapped out, and "
)


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
                "MAX_LOADED_MODELS=1",
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
            load(both()),
            [card(12)],
            fine(
                "memory",
                "base and refiner in turn need 10.4 GiB (fp16, 4 images together), and the NVIDIA "
                "RTX has 12.0 GiB, 12.0 GiB of it free",
            ),
        ),
        (
            load(both()),
            [card(24)],
            fine(
                "memory",
                "base and refiner in turn need 10.4 GiB (fp16, 4 images together), and the NVIDIA "
                "RTX has 24.0 GiB, 24.0 GiB of it free: enough for both at once, by "
                "MAX_LOADED_MODELS=2",
            ),
        ),
        (
            load(both(room=2)),
            [card(12)],
            warn(
                "memory",
                "base and refiner need 16.1 GiB (fp16, 4 images together, 2 models in memory), and "
                "the NVIDIA RTX has 12.0 GiB: to have room, fewer images would be made at a time, "
                "or all more slowly",
                "MAX_LOADED_MODELS=1",
            ),
        ),
        (
            load(both(), images=8),
            [card(10)],
            warn(
                "memory",
                "base and refiner in turn need 11.9 GiB (fp16, 8 images together), and the NVIDIA "
                "RTX has 10.0 GiB: to have room, fewer images would be made at a time, or all more "
                "slowly",
                "MODEL_MAX_BATCH_SIZE=2",
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
            load(both(), images=1, precision="fp32"),
            20,
            fail(
                "memory",
                "the models need 29.0 GiB of memory (fp32, one image at a time), and 20.0 GiB can "
                "be taken",
                "MODEL_REFINER_CHECKPOINT_DIR=",
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
    assert replicas_of(args, [ONE], POLISH, "cuda", 3, 1) == (base(), base(), refiner(0.25))
    assert replicas_of(args, [ONE], None, "cpu", 0, 1) == (base(0), base(0))


@pytest.mark.parametrize("config", ["serve_config.yaml", "configs/one-gpu-12gb.yaml"])
def test_on_one_card_the_stages_of_the_shipped_configs_take_turns(config: str) -> None:
    args = read_config(Path(__file__).parents[3] / config).args
    assert replicas_of(args, [ONE], POLISH, "cuda", 1, 1) == (both(),)
    assert replicas_of(args, [ONE], POLISH, "cuda", 1, 2) == (both(room=2),)
    assert replicas_of(args, [ONE], None, "cuda", 1, 1) == (base(),)


def test_with_a_card_for_each_the_stages_of_the_shipped_config_have_one_each() -> None:
    args = read_config(Path(__file__).parents[3] / "serve_config.yaml").args
    assert replicas_of(args, [ONE], POLISH, "cuda", 2, 1) == (base(), refiner())
    assert replicas_of(args, [ONE], POLISH, "cpu", 1, 1) == (base(0), refiner(0))


@pytest.mark.parametrize(
    ("config", "cards", "size", "there"),
    [
        ("one-gpu-12gb.yaml", 1, 12, 16),
        ("one-gpu-24gb.yaml", 1, 24, 1),
        ("workstation-4gpu.yaml", 4, 12, 1),
        ("cpu.yaml", 0, 0, 32),
        ("apple-mps.yaml", 0, 0, 18),
    ],
)
def test_sdxl_has_room_where_a_config_is_for(
    config: str, cards: int, size: int, there: int
) -> None:
    """On so many cards of so many GiB, beside so many of the machine's own memory."""
    args = read_config(Path(__file__).parents[3] / "configs" / config).args
    said = args.settings
    device = said.get("MODEL_DEVICE", "cuda")
    room = int(said.get("MAX_LOADED_MODELS", "1"))
    replicas = replicas_of(args, [ONE], POLISH, device, cards, room)
    images = int(said["MODEL_MAX_BATCH_SIZE"])
    asked = Load(replicas, images, said.get("MODEL_PRECISION", "fp16"), vae_half=device == "cuda")
    if device != "cuda":
        return verify([check_ram(asked, there * GIB)])
    held = [card(size)] * cards
    copies = check_copies(asked, held, there * GIB)
    verify([check_gpus(asked, held, config), check_vram(asked, held), *copies])


def verify(findings: list[Finding]) -> None:
    assert [one.message for one in findings if one.fix] == []


@pytest.mark.parametrize(
    ("asked", "there", "free", "findings"),
    [
        (
            load(both()),
            card(12),
            16,
            [fine("host memory", f"{COPIES.format('12.1')}16.0 GiB can be taken")],
        ),
        (
            load(both()),
            card(12),
            8,
            [
                fail(
                    "host memory",
                    f"{COPIES.format('12.1')}8.0 GiB can be taken",
                    "MODEL_REFINER_CHECKPOINT_DIR=",
                )
            ],
        ),
        (
            load(both()),
            card(24),
            8,
            [
                fail(
                    "host memory",
                    f"{COPIES.format('12.1')}8.0 GiB can be taken",
                    "MAX_LOADED_MODELS=2",
                )
            ],
        ),
        (
            load(both(), precision="fp32"),
            card(24),
            16,
            [
                fail(
                    "host memory",
                    f"{COPIES.format('24.2')}16.0 GiB can be taken",
                    "MODEL_PRECISION=fp16",
                )
            ],
        ),
        (
            load(both()),
            card(12),
            0,
            [skip("host memory", "how much memory is free can't be told on this system")],
        ),
        (load(both(room=2)), card(24), 1, []),
        (load(base(), refiner()), card(24), 1, []),
    ],
)
def test_copies_on_the_host(asked: Load, there: Card, free: int, findings: list[Finding]) -> None:
    assert list(check_copies(asked, [there], free * GIB)) == findings
