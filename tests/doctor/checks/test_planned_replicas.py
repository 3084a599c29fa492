"""The replicas that a config plans, and whether SDXL fits on the machine that it is for."""

import re
from pathlib import Path

import pytest

from serve_app.config.app_args import AppArgs
from serve_app.config.catalog import max_batch_images, precision_of
from serve_app.config.serve_config import read_config
from serve_app.config.settings import Settings
from serve_app.config.topology import Topology, replica_demands
from serve_app.doctor.checks.capacity import (
    PlannedLoad,
    check_gpu_memory,
    check_host_copies,
    check_placement,
    check_ram,
    planned_replicas,
)
from serve_app.doctor.checks.gpu_memory import ModelSize, Replica
from tests.support.machines import GIB
from tests.support.planned_loads import gpu
from tests.support.sdxl_sizes import BASE_SIZE, REFINER_SIZE, base, both, refiner

ROOT = Path(__file__).parents[3]


def replicas_of(
    args: AppArgs,
    device: str,
    num_gpus: int,
    *,
    refiner: ModelSize | None = REFINER_SIZE,
    max_loaded: int = 1,
) -> tuple[Replica, ...]:
    topology = Topology.resolve(args, device, num_gpus, refiner=refiner is not None)
    return planned_replicas(topology, [BASE_SIZE], refiner, max_loaded)


def test_a_config_determines_the_replicas_and_their_gpu_shares() -> None:
    args = AppArgs.model_validate(
        {"base": {"min_replicas": 2, "max_replicas": 5}, "refiner": {"num_gpus": 0.25}}
    )
    assert replicas_of(args, "cuda", 3) == (base(), base(), refiner(0.25))
    assert replicas_of(args, "cpu", 0, refiner=None) == (base(0), base(0))


@pytest.mark.parametrize("config", ["serve_config.yaml", "configs/one-gpu-12gb.yaml"])
def test_on_one_gpu_the_stages_of_the_shipped_configs_take_turns(config: str) -> None:
    args = read_config(ROOT / config).args
    assert replicas_of(args, "cuda", 1) == (both(),)
    assert replicas_of(args, "cuda", 1, max_loaded=2) == (both(max_loaded=2),)
    assert replicas_of(args, "cuda", 1, refiner=None) == (base(),)


def test_with_a_gpu_for_each_the_stages_of_the_shipped_config_have_one_each() -> None:
    args = read_config(ROOT / "serve_config.yaml").args
    assert replicas_of(args, "cuda", 2) == (base(), refiner())
    assert replicas_of(args, "cpu", 1) == (base(0), refiner(0))


@pytest.mark.parametrize(
    ("config", "num_gpus", "gpu_memory", "host_memory"),
    [
        ("one-gpu-12gb.yaml", 1, 12, 16),
        ("one-gpu-24gb.yaml", 1, 24, 1),
        ("workstation-4gpu.yaml", 4, 12, 1),
        ("apple-mps.yaml", 0, 0, 18),
    ],
)
def test_sdxl_fits_on_the_machine_that_a_config_is_for(
    config: str, num_gpus: int, gpu_memory: int, host_memory: int
) -> None:
    args = read_config(ROOT / "configs" / config).args
    settings = args.settings
    device = settings.get("MODEL_DEVICE", "cuda")
    max_loaded = int(settings.get("MAX_LOADED_MODELS", "1"))
    replicas = replicas_of(args, device, num_gpus, max_loaded=max_loaded)
    images, precision = int(settings["MODEL_MAX_BATCH_SIZE"]), settings.get("MODEL_PRECISION")
    planned = PlannedLoad(replicas, images, precision or "fp16", vae_half=device == "cuda")
    if device == "cuda":
        topology = Topology.resolve(args, device, num_gpus, refiner=True)
        demands = replica_demands(topology, args.ingress)
        gpus = [gpu(gpu_memory)] * num_gpus
        findings = [
            check_placement(demands, 8, num_gpus, Path(config)),
            check_gpu_memory(planned, gpus),
            *check_host_copies(planned, gpus, host_memory * GIB),
        ]
    else:
        findings = [check_ram(planned, host_memory * GIB)]
    assert [finding.message for finding in findings if finding.fix] == []


@pytest.mark.parametrize(
    ("precision", "refiner_size", "host_memory"),
    [
        ("bf16", None, 12),
        ("bf16", REFINER_SIZE, 18),
        ("fp32", None, 20),
        ("fp32", REFINER_SIZE, 32),
    ],
)
def test_on_a_cpu_sdxl_needs_the_memory_that_its_config_says(
    precision: str, refiner_size: ModelSize | None, host_memory: int
) -> None:
    path = ROOT / "configs" / "cpu.yaml"
    config = read_config(path)
    settings = Settings.read(config.args.settings | {"MODEL_CHECKPOINT_DIR": "./models/sdxl-base"})
    assert precision_of(settings, "cpu", cpu_has_bf16=precision == "bf16") == precision
    replicas = replicas_of(
        config.args, "cpu", 0, refiner=refiner_size, max_loaded=settings.max_loaded_models
    )
    planned = PlannedLoad(replicas, max_batch_images(settings, "cpu"), precision, vae_half=False)
    assert check_ram(planned, host_memory * GIB).fix == ""
    assert check_ram(planned, (host_memory - 3) * GIB).fix
    stated = {  # what the comment says of this precision
        words[0]: words[1:]
        for words in re.findall(r"(bf16|fp32): (\d+) GiB .* (\d+) GiB", path.read_text())
    }
    assert int(stated[precision][0 if refiner_size is None else 1]) == host_memory
