"""GPUs, drivers and builds of torch that do not fit together, as values; xFormers for real."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from serve_app.config.settings import Settings
from serve_app.doctor.checks import gpus as checks
from serve_app.doctor.checks.gpu_probe import Gpu, GpuReport, TorchBuild, probe
from serve_app.doctor.checks.gpus import XformersReport
from serve_app.doctor.checks.machine import Machine
from serve_app.doctor.finding import Finding, Verdict, fail, fine, skip, warn
from tests.support.machines import (
    ADA,
    GIB,
    SOUND_MACHINE,
    WITHOUT_GPU,
    WSL_2,
    machine,
    with_gpus,
)

TURING = Gpu("NVIDIA RTX 2080 Ti", 11 * GIB, 10 * GIB, (7, 5), has_bf16=False)
KEPLER = Gpu("NVIDIA Tesla K80", 12 * GIB, 12 * GIB, (3, 7), has_bf16=False)
BLACKWELL = Gpu("NVIDIA B200", 180 * GIB, 180 * GIB, (10, 0), has_bf16=True)
WSL = machine(release=WSL_2)
REINSTALL = "python -m pip uninstall -y torch && python -m pip install -e ."
IN_WINDOWS = "explorer.exe https://www.nvidia.com/drivers"


def read(**values: str) -> Settings:
    return Settings.read({name.upper(): value for name, value in values.items()})


UNSEEN = with_gpus()
CPU_BUILD = replace(UNSEEN, torch=TorchBuild("2.13.0+cpu", None, (), has_mps=False, gpus=()))


@pytest.mark.parametrize(
    ("report", "machine", "finding"),
    [
        (
            with_gpus(ADA),
            SOUND_MACHINE,
            fine("torch", "torch 2.13.0, built for CUDA 12.8, which the driver supports"),
        ),
        (
            WITHOUT_GPU,
            SOUND_MACHINE,
            fine("torch", "torch 2.13.0, built for CUDA 12.8; this machine has no NVIDIA GPU"),
        ),
        (
            replace(WITHOUT_GPU, torch=None, problem="libtorch_cpu.so: no such file"),
            SOUND_MACHINE,
            fail("torch", "torch can't be used: libtorch_cpu.so: no such file", REINSTALL),
        ),
        (
            CPU_BUILD,
            SOUND_MACHINE,
            fail(
                "torch",
                "torch 2.13.0+cpu, built without CUDA, can't use the NVIDIA GPU of this machine",
                REINSTALL,
            ),
        ),
        (
            replace(UNSEEN, driver_cuda=None),
            SOUND_MACHINE,
            fail(
                "torch",
                "torch 2.13.0, built for CUDA 12.8, but the NVIDIA GPU of this machine has no "
                "driver that can be loaded",
                "sudo ubuntu-drivers install",
            ),
        ),
        (
            replace(UNSEEN, driver_cuda=(11, 4)),
            SOUND_MACHINE,
            fail(
                "torch",
                "torch 2.13.0, built for CUDA 12.8, but the NVIDIA driver supports CUDA 11.4 at "
                "most: install a newer driver",
                "sudo ubuntu-drivers install",
            ),
        ),
        (
            replace(UNSEEN, driver_cuda=(11, 4)),
            WSL,
            fail(
                "torch",
                "torch 2.13.0, built for CUDA 12.8, but the NVIDIA driver supports CUDA 11.4 at "
                "most: install a newer driver in Windows",
                IN_WINDOWS,
            ),
        ),
        (
            replace(UNSEEN, visible_devices="-1"),
            SOUND_MACHINE,
            fail(
                "torch",
                "torch 2.13.0, built for CUDA 12.8, but CUDA_VISIBLE_DEVICES=-1 hides the NVIDIA "
                "GPU",
                "unset CUDA_VISIBLE_DEVICES",
            ),
        ),
        (
            UNSEEN,
            SOUND_MACHINE,
            fail("torch", "torch 2.13.0, built for CUDA 12.8, but it sees no GPU", "nvidia-smi"),
        ),
        (
            with_gpus(ADA, KEPLER),
            SOUND_MACHINE,
            fail(
                "torch",
                "torch 2.13.0, built for CUDA 12.8, has kernels for sm_75, sm_80, sm_86, sm_90, "
                "but none for the NVIDIA Tesla K80 (compute capability 3.7)",
                "MODEL_DEVICE=cpu",
            ),
        ),
    ],
)
def test_torch_must_fit_the_driver_and_the_gpus(
    report: GpuReport, machine: Machine, finding: Finding
) -> None:
    assert checks.check_torch(report, machine) == finding


@pytest.mark.parametrize(
    ("archs", "gpu", "runs"),
    [
        (("sm_80",), ADA, True),
        (("sm_90",), ADA, False),
        (("sm_75",), ADA, False),
        (("compute_75",), ADA, True),
        (("sm_90a", "sm_100a"), BLACKWELL, True),
        (("sm_90", "compute_90"), BLACKWELL, True),
        (("sm_90", "compute_120"), BLACKWELL, False),
    ],
)
def test_kernels_run_on_their_major_version_and_ptx_on_everything_newer(
    archs: tuple[str, ...], gpu: Gpu, runs: bool
) -> None:
    finding = checks.check_torch(with_gpus(gpu, archs=archs), SOUND_MACHINE)
    assert (finding.fix == "") is runs


@pytest.mark.parametrize(
    ("setting", "report", "finding"),
    [
        ("auto", with_gpus(ADA), fine("device", "NVIDIA RTX 4090 (23.0 GiB of 24.0 GiB free)")),
        (
            "cuda",
            with_gpus(ADA, TURING),
            fine(
                "device",
                "NVIDIA RTX 4090 (23.0 GiB of 24.0 GiB free) and NVIDIA RTX 2080 Ti (10.0 GiB of "
                "11.0 GiB free)",
            ),
        ),
        (
            "cuda:1",
            with_gpus(ADA, TURING),
            fine("device", "NVIDIA RTX 2080 Ti (10.0 GiB of 11.0 GiB free)"),
        ),
        (
            "cuda",
            WITHOUT_GPU,
            fail("device", "MODEL_DEVICE=cuda, but torch sees no GPU", "MODEL_DEVICE=auto"),
        ),
        (
            "cuda:3",
            with_gpus(ADA, TURING),
            fail(
                "device",
                "MODEL_DEVICE=cuda:3, but the number must be between 0 and 1",
                "MODEL_DEVICE=cuda:1",
            ),
        ),
        (
            "mps",
            WITHOUT_GPU,
            fail(
                "device", "MODEL_DEVICE=mps, but this machine has no Apple GPU", "MODEL_DEVICE=auto"
            ),
        ),
        (
            "cpu",
            with_gpus(ADA),
            warn(
                "device",
                "MODEL_DEVICE=cpu leaves the NVIDIA RTX 4090 unused: images will be slow",
                "MODEL_DEVICE=auto",
            ),
        ),
        (
            "auto",
            WITHOUT_GPU,
            warn(
                "device",
                "the CPU, because torch sees no GPU: SDXL will be slow without a GPU of 12 GB or "
                "more, and faster with fewer steps and smaller images",
                'aura generate "a fox" --steps 12',
            ),
        ),
        (
            "auto",
            replace(WITHOUT_GPU, torch=None, problem="broken"),
            skip("device", "not checked, because torch can't be used"),
        ),
    ],
)
def test_the_selected_device_must_exist(setting: str, report: GpuReport, finding: Finding) -> None:
    assert checks.check_device(read(model_device=setting), report, is_demo=False) == finding


def test_an_apple_gpu_can_be_used() -> None:
    torch = TorchBuild("2.13.0", None, (), has_mps=True, gpus=())
    report = replace(WITHOUT_GPU, torch=torch)
    finding = checks.check_device(read(model_device="mps"), report, is_demo=False)
    assert finding == fine("device", "the Apple GPU, which is slower than an NVIDIA GPU")


@pytest.mark.parametrize(
    ("precision", "gpu", "finding"),
    [
        ("bf16", ADA, fine("precision", "bf16 on cuda")),
        ("fp16", TURING, fine("precision", "fp16 on cuda")),
        (
            "bf16",
            TURING,
            warn(
                "precision",
                "MODEL_PRECISION=bf16, which the NVIDIA RTX 2080 Ti only emulates, slowly: its "
                "compute capability is 7.5, and bf16 needs 8.0",
                "MODEL_PRECISION=fp16",
            ),
        ),
    ],
)
def test_a_gpu_must_support_the_precision(precision: str, gpu: Gpu, finding: Finding) -> None:
    settings = read(model_precision=precision)
    assert checks.check_precision(settings, with_gpus(gpu), cpu_has_bf16=False) == finding


@pytest.mark.parametrize(
    ("precision", "has_bf16", "finding"),
    [
        ("bf16", True, fine("precision", "bf16 on cpu")),
        ("auto", True, fine("precision", "bf16 on cpu")),
        ("auto", False, fine("precision", "fp32 on cpu")),
        ("", False, fine("precision", "fp32 on cpu")),
        (
            "",
            True,
            fine(
                "precision",
                "fp32 on cpu; this processor computes bf16 too, which is faster and takes half "
                "the memory, at a slight loss of precision: MODEL_PRECISION=bf16",
            ),
        ),
        (
            "bf16",
            False,
            warn(
                "precision",
                "MODEL_PRECISION=bf16 on a processor without instructions for bf16, where it is "
                "several times slower than fp32 and takes half the memory",
                "MODEL_PRECISION=fp32",
            ),
        ),
    ],
)
def test_bf16_is_for_processors_that_compute_it(
    precision: str, has_bf16: bool, finding: Finding
) -> None:
    settings = read(model_precision=precision, model_checkpoint_dir="./sdxl", model_device="cpu")
    assert checks.check_precision(settings, WITHOUT_GPU, cpu_has_bf16=has_bf16) == finding


def test_xformers_is_judged_by_a_real_probe() -> None:
    off, on = read(), read(enable_xformers="1")
    assert checks.probe_xformers(off, WITHOUT_GPU) is None
    finding = checks.check_xformers(off, None)
    assert finding == fine("xformers", "off: PyTorch's own attention is used")
    finding = checks.check_xformers(on, checks.probe_xformers(on, WITHOUT_GPU))
    if find_spec("xformers") is None:
        assert finding == warn(
            "xformers",
            "ENABLE_XFORMERS=1, but xFormers is not installed: PyTorch's own attention is used",
            "python -m pip install -e '.[xformers]'",
        )
    else:
        assert finding.fix == "ENABLE_XFORMERS=0"


def test_xformers_is_switched_off_if_it_does_not_work() -> None:
    on = read(enable_xformers="1")
    problem = "xFormers does not run on cuda with torch.float16 (no kernel image)"
    assert checks.check_xformers(on, XformersReport(problem, is_installed=True)) == warn(
        "xformers",
        f"ENABLE_XFORMERS=1, but {problem}: PyTorch's own attention is used",
        "ENABLE_XFORMERS=0",
    )
    works = XformersReport("", is_installed=True)
    finding = fine("xformers", "its attention works on this device")
    assert checks.check_xformers(on, works) == finding
    skipped = skip("xformers", "not checked, because the device can't be used")
    assert checks.check_xformers(on, None) == skipped


def test_the_torch_of_this_machine_can_be_probed() -> None:
    report = probe()
    assert report.torch is not None
    assert report.problem == ""
    assert report.torch.version == torch.__version__


def test_compiling_without_a_compiler_is_named_before_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on = read(model_compile="regions")
    assert checks.check_compile(read(), WITHOUT_GPU).verdict is Verdict.OK
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.check_compile(on, WITHOUT_GPU).verdict is Verdict.OK
    (tmp_path / "g++").unlink()
    finding = checks.check_compile(on, WITHOUT_GPU)
    assert finding.verdict is Verdict.FAIL
    assert "MODEL_COMPILE=regions, but torch.compile needs a C++ compiler" in finding.message


@pytest.mark.parametrize(
    ("settings", "verdict", "message"),
    [
        ({}, Verdict.OK, "off: weights have the precision of MODEL_PRECISION"),
        ({"model_quantization": "int8"}, Verdict.OK, "int8 works on this device"),
    ],
)
def test_quantization_is_judged_by_a_real_probe(
    settings: dict[str, str], verdict: Verdict, message: str
) -> None:
    finding = checks.check_quantization(read(model_device="cpu", **settings), WITHOUT_GPU)
    assert (finding.verdict, finding.message) == (verdict, message)


def test_a_quantization_that_does_not_run_is_named_before_the_start() -> None:
    settings = read(model_device="cpu").model_copy(update={"model_quantization": "int2"})
    finding = checks.check_quantization(settings, WITHOUT_GPU)
    assert finding.verdict is Verdict.FAIL
    assert finding.message.startswith("MODEL_QUANTIZATION=int2, but int2 does not run on cpu (")
    assert finding.fix == "MODEL_QUANTIZATION=off"
