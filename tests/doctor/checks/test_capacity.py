"""Models that fit or do not, as values; each problem with the cheapest setting that helps."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.config.app_args import AppArgs
from serve_app.config.catalog import max_batch_images, precision_of
from serve_app.config.serve_config import read_config
from serve_app.config.settings import Settings
from serve_app.config.topology import Topology, replica_demands
from serve_app.core.capacity.placement import ReplicaDemand
from serve_app.doctor.checks.capacity import (
    PlannedLoad,
    check_gpu_memory,
    check_host_copies,
    check_placement,
    check_ram,
    planned_replicas,
)
from serve_app.doctor.checks.gpu_memory import ModelSize, Replica
from serve_app.doctor.checks.gpu_probe import Gpu
from serve_app.doctor.finding import Finding, fail, fine, skip, warn
from tests.support.machines import GIB
from tests.support.sdxl_sizes import BASE_SIZE, REFINER_SIZE, base, both, refiner


def gpu(total: float, free: float | None = None, *, name: str = "NVIDIA RTX") -> Gpu:
    free = total if free is None else free
    return Gpu(name, int(total * GIB), int(free * GIB), (8, 6), has_bf16=True)


def load(*replicas: Replica, images: int = 4, precision: str = "fp16") -> PlannedLoad:
    return PlannedLoad(replicas, images, precision, vae_half=True)


ROOT = Path(__file__).parents[3]
SHARING_A_GPU = (base(0.5), refiner(0.5))
COPIES = (
    "the models that take turns on the GPU need {} GiB of pinned host memory for their copies, and "
)


@pytest.mark.parametrize(
    ("planned", "gpus", "finding"),
    [
        (
            load(base()),
            [gpu(16)],
            fine(
                "memory",
                "base needs 10.4 GiB (fp16, 4 images together), and the NVIDIA RTX has 16.0 GiB, "
                "16.0 GiB of it free",
            ),
        ),
        (
            load(base(), precision="fp32"),
            [gpu(16)],
            warn(
                "memory",
                "base needs 19.9 GiB (fp32, 4 images together), and the NVIDIA RTX has 16.0 GiB: "
                "fewer images will be generated at once, or all of them more slowly",
                "MODEL_PRECISION=fp16",
            ),
        ),
        (
            load(base(models=2)),
            [gpu(16)],
            warn(
                "memory",
                "base needs 16.9 GiB (fp16, 4 images together, 2 models in memory), and the NVIDIA "
                "RTX has 16.0 GiB: fewer images will be generated at once, or all of them more "
                "slowly",
                "MAX_LOADED_MODELS=1",
            ),
        ),
        (
            load(base(models=2), precision="fp32"),
            [gpu(19)],
            warn(
                "memory",
                "base needs 32.8 GiB (fp32, 4 images together, 2 models in memory), and the NVIDIA "
                "RTX has 19.0 GiB: fewer images will be generated at once, or all of them more "
                "slowly",
                "MODEL_PRECISION=fp16",
            ),
        ),
        (
            load(base(), images=16),
            [gpu(12)],
            warn(
                "memory",
                "base needs 14.9 GiB (fp16, 16 images together), and the NVIDIA RTX has 12.0 GiB: "
                "fewer images will be generated at once, or all of them more slowly",
                "MODEL_MAX_BATCH_SIZE=8",
            ),
        ),
        (
            load(base(), images=1),
            [gpu(8)],
            warn(
                "memory",
                "base needs 9.3 GiB (fp16, one image at a time), and the NVIDIA RTX has 8.0 GiB: "
                "fewer images will be generated at once, or all of them more slowly",
                "ENABLE_XFORMERS=1",
            ),
        ),
        (
            load(base(), precision="fp32"),
            [gpu(10)],
            warn(
                "memory",
                "base needs 19.9 GiB (fp32, 4 images together), and the NVIDIA RTX has 10.0 GiB: "
                "fewer images will be generated at once, or all of them more slowly",
                "MODEL_PRECISION=fp16",
            ),
        ),
        (
            load(*SHARING_A_GPU),
            [gpu(24)],
            fine(
                "memory",
                "base and refiner need 20.1 GiB (fp16, 4 images together), and the NVIDIA RTX has "
                "24.0 GiB, 24.0 GiB of it free",
            ),
        ),
        (
            load(*SHARING_A_GPU),
            [gpu(12)],
            warn(
                "memory",
                "base and refiner need 20.1 GiB (fp16, 4 images together), and the NVIDIA RTX has "
                "12.0 GiB: fewer images will be generated at once, or all of them more slowly",
                "MODEL_REFINER_CHECKPOINT_DIR=",
            ),
        ),
        (
            load(both()),
            [gpu(12)],
            fine(
                "memory",
                "base and refiner in turn need 10.4 GiB (fp16, 4 images together), and the NVIDIA "
                "RTX has 12.0 GiB, 12.0 GiB of it free",
            ),
        ),
        (
            load(both()),
            [gpu(24)],
            fine(
                "memory",
                "base and refiner in turn need 10.4 GiB (fp16, 4 images together), and the NVIDIA "
                "RTX has 24.0 GiB, 24.0 GiB of it free; with MAX_LOADED_MODELS=2 both stay loaded",
            ),
        ),
        (
            load(both(max_loaded=2)),
            [gpu(12)],
            warn(
                "memory",
                "base and refiner need 16.1 GiB (fp16, 4 images together, 2 models in memory), and "
                "the NVIDIA RTX has 12.0 GiB: fewer images will be generated at once, or all of "
                "them more slowly",
                "MAX_LOADED_MODELS=1",
            ),
        ),
        (
            load(both(), images=8),
            [gpu(10)],
            warn(
                "memory",
                "base and refiner in turn need 11.9 GiB (fp16, 8 images together), and the NVIDIA "
                "RTX has 10.0 GiB: fewer images will be generated at once, or all of them more "
                "slowly",
                "MODEL_MAX_BATCH_SIZE=2",
            ),
        ),
        (
            load(*SHARING_A_GPU),
            [gpu(8)],
            warn(
                "memory",
                "base and refiner need 20.1 GiB (fp16, 4 images together), and the NVIDIA RTX has "
                "8.0 GiB: fewer images will be generated at once, or all of them more slowly",
                "MODEL_MAX_BATCH_SIZE=1",
            ),
        ),
        (
            load(base()),
            [gpu(24, 10)],
            warn(
                "memory",
                "base needs 10.4 GiB (fp16, 4 images together), and the NVIDIA RTX has 24.0 GiB, "
                "of which other processes leave 10.0 GiB free",
                "MODEL_MAX_BATCH_SIZE=2",
            ),
        ),
        (
            load(base()),
            [gpu(24, 3)],
            warn(
                "memory",
                "base needs 10.4 GiB (fp16, 4 images together), and the NVIDIA RTX has 24.0 GiB, "
                "of which other processes leave 3.0 GiB free",
                "nvidia-smi",
            ),
        ),
        (
            load(base(), refiner()),
            [gpu(24), gpu(8, name="NVIDIA RTX 3070")],
            warn(
                "memory",
                "refiner needs 9.6 GiB (fp16, 4 images together), and the NVIDIA RTX 3070 has 8.0 "
                "GiB: fewer images will be generated at once, or all of them more slowly",
                "MODEL_MAX_BATCH_SIZE=1",
            ),
        ),
        (
            load(base(), refiner()),
            [gpu(24)],
            fine(
                "memory",
                "base needs 10.4 GiB (fp16, 4 images together), and the NVIDIA RTX has 24.0 GiB, "
                "24.0 GiB of it free",
            ),
        ),
    ],
)
def test_every_gpu_needs_memory_for_its_replicas(
    planned: PlannedLoad, gpus: list[Gpu], finding: Finding
) -> None:
    assert check_gpu_memory(planned, gpus) == finding


def demand(count: int, gpus: float, cpus: float = 0.1, name: str = "Base") -> ReplicaDemand:
    return ReplicaDemand(name, count, {"GPU": gpus, "CPU": cpus})


EDIT = '"${EDITOR:-vi}" serve_config.yaml'


@pytest.mark.parametrize(
    ("demands", "num_gpus", "finding"),
    [
        ([demand(1, 1), demand(1, 1)], 2, fine("gpus", "2 replicas need 2 of 2 GPUs")),
        ([demand(2, 0.5)], 1, fine("gpus", "2 replicas need 1 of 1 GPU")),
        (
            [demand(3, 1)],
            2,
            fail(
                "gpus",
                "Base can't start: 3 replicas need 1 GPU and 0.1 CPU each, and Ray has 2 GPU and "
                "4 CPU on 1 node, with room for 2",
                EDIT,
            ),
        ),
        (
            [demand(1, 1)],
            0,
            fail(
                "gpus",
                "Base can't start: 1 replica needs 1 GPU and 0.1 CPU, and Ray has 0 GPU and 4 CPU "
                "on 1 node",
                EDIT,
            ),
        ),
        (
            [demand(1, 0, 8)],
            0,
            fail(
                "cpus",
                "Base can't start: 1 replica needs 8 CPU, and Ray has 4 CPU on 1 node",
                EDIT,
            ),
        ),
    ],
)
def test_every_replica_needs_what_it_requests(
    demands: list[ReplicaDemand], num_gpus: int, finding: Finding
) -> None:
    assert check_placement(demands, 4, num_gpus, Path("serve_config.yaml")) == finding


@pytest.mark.parametrize(
    ("planned", "available", "finding"),
    [
        (
            load(base(), images=2, precision="fp32"),
            32,
            fine(
                "memory",
                "the models need 18.4 GiB of memory (fp32, 2 images together), and 32.0 GiB are "
                "available",
            ),
        ),
        (
            load(base(), images=2, precision="fp32"),
            18,
            fail(
                "memory",
                "the models need 18.4 GiB of memory (fp32, 2 images together), and 18.0 GiB are "
                "available",
                "MODEL_MAX_BATCH_SIZE=1",
            ),
        ),
        (
            load(base(), refiner(), images=1, precision="fp32"),
            20,
            fail(
                "memory",
                "the models need 33.7 GiB of memory (fp32, one image at a time), and 20.0 GiB are "
                "available",
                "MODEL_REFINER_CHECKPOINT_DIR=",
            ),
        ),
        (
            load(base(), images=1, precision="fp32"),
            8,
            fail(
                "memory",
                "the models need 17.7 GiB of memory (fp32, one image at a time), and 8.0 GiB are "
                "available",
                "MODEL_CHECKPOINT_DIR=",
            ),
        ),
        (
            load(both(), images=1, precision="fp32"),
            20,
            fail(
                "memory",
                "the models need 29.0 GiB of memory (fp32, one image at a time), and 20.0 GiB are "
                "available",
                "MODEL_REFINER_CHECKPOINT_DIR=",
            ),
        ),
        (
            load(base()),
            0,
            skip("memory", "this system does not say how much memory is available"),
        ),
    ],
)
def test_without_gpus_all_replicas_share_the_memory_of_the_machine(
    planned: PlannedLoad, available: int, finding: Finding
) -> None:
    assert check_ram(replace(planned, vae_half=False), available * GIB) == finding


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
        demands = replica_demands(args, Topology.resolve(args, device, num_gpus, refiner=True))
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


def test_half_the_memory_is_advised_where_the_processor_computes_bf16() -> None:
    planned = replace(load(base(0), images=2, precision="fp32"), vae_half=False)
    assert check_ram(planned, 15 * GIB).fix == "MODEL_CHECKPOINT_DIR="
    assert check_ram(replace(planned, cpu_has_bf16=True), 15 * GIB).fix == "MODEL_PRECISION=bf16"


@pytest.mark.parametrize(
    ("planned", "gpu", "available", "findings"),
    [
        (
            load(both()),
            gpu(12),
            16,
            [fine("host memory", f"{COPIES.format('12.1')}16.0 GiB are available")],
        ),
        (
            load(both()),
            gpu(12),
            8,
            [
                fail(
                    "host memory",
                    f"{COPIES.format('12.1')}8.0 GiB are available",
                    "MODEL_REFINER_CHECKPOINT_DIR=",
                )
            ],
        ),
        (
            load(both()),
            gpu(24),
            8,
            [
                fail(
                    "host memory",
                    f"{COPIES.format('12.1')}8.0 GiB are available",
                    "MAX_LOADED_MODELS=2",
                )
            ],
        ),
        (
            load(both(), precision="fp32"),
            gpu(24),
            16,
            [
                fail(
                    "host memory",
                    f"{COPIES.format('24.2')}16.0 GiB are available",
                    "MODEL_PRECISION=fp16",
                )
            ],
        ),
        (
            load(both()),
            gpu(12),
            0,
            [skip("host memory", "this system does not say how much memory is available")],
        ),
        (load(both(max_loaded=2)), gpu(24), 1, []),
        (load(base(), refiner()), gpu(24), 1, []),
    ],
)
def test_models_that_take_turns_need_host_memory(
    planned: PlannedLoad, gpu: Gpu, available: int, findings: list[Finding]
) -> None:
    assert list(check_host_copies(planned, [gpu], available * GIB)) == findings
