"""Models that fit into the machine's memory or do not; each problem with the cheapest remedy."""

from dataclasses import replace

import pytest

from serve_app.doctor.checks.capacity import (
    PlannedLoad,
    check_host_copies,
    check_ram,
)
from serve_app.doctor.checks.gpu_probe import Gpu
from serve_app.doctor.finding import Finding, fail, fine, skip
from tests.support.machines import GIB
from tests.support.planned_loads import gpu, load
from tests.support.sdxl_sizes import base, both, refiner

COPIES = (
    "the models that take turns on the GPU need {} GiB of pinned host memory for their copies, and "
)


@pytest.mark.parametrize(
    ("planned", "available", "finding"),
    [
        (
            load(base(), images=2, precision="fp32"),
            32,
            fine(
                "memory",
                "the models need 18.5 GiB of memory (fp32, 2 images together), and 32.0 GiB are "
                "available",
            ),
        ),
        (
            load(base(), images=2, precision="fp32"),
            18,
            fail(
                "memory",
                "the models need 18.5 GiB of memory (fp32, 2 images together), and 18.0 GiB are "
                "available",
                "MODEL_MAX_BATCH_SIZE=1",
            ),
        ),
        (
            load(base(), refiner(), images=1, precision="fp32"),
            20,
            fail(
                "memory",
                "the models need 33.9 GiB of memory (fp32, one image at a time), and 20.0 GiB are "
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
                "the models need 29.1 GiB of memory (fp32, one image at a time), and 20.0 GiB are "
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
