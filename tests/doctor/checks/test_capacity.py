"""Models that fit on a GPU or do not, as values; each problem with the cheapest remedy."""

import pytest

from serve_app.doctor.checks.capacity import (
    PlannedLoad,
    check_gpu_memory,
)
from serve_app.doctor.checks.gpu_probe import Gpu
from serve_app.doctor.finding import Finding, fine, warn
from tests.support.planned_loads import gpu, load
from tests.support.sdxl_sizes import base, both, refiner

SHARING_A_GPU = (base(0.5), refiner(0.5))


@pytest.mark.parametrize(
    ("planned", "gpus", "finding"),
    [
        (
            load(base()),
            [gpu(16)],
            fine(
                "memory",
                "base needs 10.6 GiB (fp16, 4 images together), and the NVIDIA RTX has 16.0 GiB, "
                "16.0 GiB of it free",
            ),
        ),
        (
            load(base(), precision="fp32"),
            [gpu(16)],
            warn(
                "memory",
                "base needs 20.1 GiB (fp32, 4 images together), and the NVIDIA RTX has 16.0 GiB: "
                "fewer images will be generated at once, or all of them more slowly",
                "MODEL_PRECISION=fp16",
            ),
        ),
        (
            load(base(models=2)),
            [gpu(16)],
            warn(
                "memory",
                "base needs 17.0 GiB (fp16, 4 images together, 2 models in memory), and the NVIDIA "
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
                "base needs 33.1 GiB (fp32, 4 images together, 2 models in memory), and the NVIDIA "
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
                "base needs 15.4 GiB (fp16, 16 images together), and the NVIDIA RTX has 12.0 GiB: "
                "fewer images will be generated at once, or all of them more slowly",
                "MODEL_MAX_BATCH_SIZE=7",
            ),
        ),
        (
            load(base(), images=1),
            [gpu(8)],
            warn(
                "memory",
                "base needs 9.4 GiB (fp16, one image at a time), and the NVIDIA RTX has 8.0 GiB: "
                "fewer images will be generated at once, or all of them more slowly",
                "ENABLE_XFORMERS=1",
            ),
        ),
        (
            load(base(), precision="fp32"),
            [gpu(10)],
            warn(
                "memory",
                "base needs 20.1 GiB (fp32, 4 images together), and the NVIDIA RTX has 10.0 GiB: "
                "fewer images will be generated at once, or all of them more slowly",
                "MODEL_PRECISION=fp16",
            ),
        ),
        (
            load(*SHARING_A_GPU),
            [gpu(24)],
            fine(
                "memory",
                "base and refiner need 20.3 GiB (fp16, 4 images together), and the NVIDIA RTX has "
                "24.0 GiB, 24.0 GiB of it free",
            ),
        ),
        (
            load(*SHARING_A_GPU),
            [gpu(12)],
            warn(
                "memory",
                "base and refiner need 20.3 GiB (fp16, 4 images together), and the NVIDIA RTX has "
                "12.0 GiB: fewer images will be generated at once, or all of them more slowly",
                "MODEL_REFINER_CHECKPOINT_DIR=",
            ),
        ),
        (
            load(both()),
            [gpu(12)],
            fine(
                "memory",
                "base and refiner in turn need 10.6 GiB (fp16, 4 images together), and the NVIDIA "
                "RTX has 12.0 GiB, 12.0 GiB of it free",
            ),
        ),
        (
            load(both()),
            [gpu(24)],
            fine(
                "memory",
                "base and refiner in turn need 10.6 GiB (fp16, 4 images together), and the NVIDIA "
                "RTX has 24.0 GiB, 24.0 GiB of it free; with MAX_LOADED_MODELS=2 both stay loaded",
            ),
        ),
        (
            load(both(max_loaded=2)),
            [gpu(12)],
            warn(
                "memory",
                "base and refiner need 16.2 GiB (fp16, 4 images together, 2 models in memory), and "
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
                "base and refiner in turn need 12.2 GiB (fp16, 8 images together), and the NVIDIA "
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
                "base and refiner need 20.3 GiB (fp16, 4 images together), and the NVIDIA RTX has "
                "8.0 GiB: fewer images will be generated at once, or all of them more slowly",
                "MODEL_MAX_BATCH_SIZE=1",
            ),
        ),
        (
            load(base()),
            [gpu(24, 10)],
            warn(
                "memory",
                "base needs 10.6 GiB (fp16, 4 images together), and the NVIDIA RTX has 24.0 GiB, "
                "of which other processes leave 10.0 GiB free",
                "MODEL_MAX_BATCH_SIZE=2",
            ),
        ),
        (
            load(base()),
            [gpu(24, 3)],
            warn(
                "memory",
                "base needs 10.6 GiB (fp16, 4 images together), and the NVIDIA RTX has 24.0 GiB, "
                "of which other processes leave 3.0 GiB free",
                "nvidia-smi",
            ),
        ),
        (
            load(base(), refiner()),
            [gpu(24), gpu(8, name="NVIDIA RTX 3070")],
            warn(
                "memory",
                "refiner needs 9.8 GiB (fp16, 4 images together), and the NVIDIA RTX 3070 has 8.0 "
                "GiB: fewer images will be generated at once, or all of them more slowly",
                "MODEL_MAX_BATCH_SIZE=1",
            ),
        ),
        (
            load(base(), refiner()),
            [gpu(24)],
            fine(
                "memory",
                "base needs 10.6 GiB (fp16, 4 images together), and the NVIDIA RTX has 24.0 GiB, "
                "24.0 GiB of it free",
            ),
        ),
    ],
)
def test_every_gpu_needs_memory_for_its_replicas(
    planned: PlannedLoad, gpus: list[Gpu], finding: Finding
) -> None:
    assert check_gpu_memory(planned, gpus) == finding
