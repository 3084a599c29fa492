"""torch, driver and cards that do not fit together, as values; the probe of xFormers for real."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from serve_app.config.settings import Settings
from serve_app.doctor.checks import gpus as cards
from serve_app.doctor.checks.gpu_probe import Card, GpuReport, Torch, probe
from serve_app.doctor.checks.machine import Machine
from serve_app.doctor.finding import Finding, fail, fine, skip, warn
from tests.doctor.conftest import GIB, SOUND, WITHOUT_CARD, machine

ADA = Card("NVIDIA RTX 4090", 24 * GIB, 23 * GIB, (8, 9), bf16=True)
TURING = Card("NVIDIA RTX 2080 Ti", 11 * GIB, 10 * GIB, (7, 5), bf16=False)
KEPLER = Card("NVIDIA Tesla K80", 12 * GIB, 12 * GIB, (3, 7), bf16=False)
BLACKWELL = Card("NVIDIA B200", 180 * GIB, 180 * GIB, (10, 0), bf16=True)
ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90")
WSL = machine(release="5.15.153.1-microsoft-standard-WSL2")
REINSTALL = "python -m pip uninstall -y torch && python -m pip install -e ."
IN_WINDOWS = "explorer.exe https://www.nvidia.com/drivers"


def with_cards(*there: Card, archs: tuple[str, ...] = ARCHS) -> GpuReport:
    torch = Torch("2.13.0", "12.8", archs, mps=False, cards=there)
    return GpuReport(torch, "", driver=(12, 8), nvidia=True, visible=None)


def read(**values: str) -> Settings:
    return Settings.read({name.upper(): value for name, value in values.items()})


UNSEEN = replace(with_cards(), problem="")
CPU_BUILD = replace(UNSEEN, torch=Torch("2.13.0+cpu", None, (), mps=False, cards=()))


@pytest.mark.parametrize(
    ("graphics", "here", "finding"),
    [
        (
            with_cards(ADA),
            SOUND,
            fine("torch", "torch 2.13.0, for CUDA 12.8, which the driver runs"),
        ),
        (
            WITHOUT_CARD,
            SOUND,
            fine("torch", "torch 2.13.0, for CUDA 12.8; there is no NVIDIA card that it could use"),
        ),
        (
            replace(WITHOUT_CARD, torch=None, problem="libtorch_cpu.so: no such file"),
            SOUND,
            fail("torch", "torch can't be used: libtorch_cpu.so: no such file", REINSTALL),
        ),
        (
            CPU_BUILD,
            SOUND,
            fail(
                "torch",
                "torch 2.13.0+cpu, without CUDA, so the NVIDIA card of this machine stays unused",
                REINSTALL,
            ),
        ),
        (
            replace(UNSEEN, driver=None),
            SOUND,
            fail(
                "torch",
                "torch 2.13.0, for CUDA 12.8, but the NVIDIA card of this machine has no driver "
                "that can be loaded",
                "sudo ubuntu-drivers install",
            ),
        ),
        (
            replace(UNSEEN, driver=(11, 4)),
            SOUND,
            fail(
                "torch",
                "torch 2.13.0, for CUDA 12.8, but the NVIDIA driver runs nothing newer than CUDA "
                "11.4: a newer driver is needed",
                "sudo ubuntu-drivers install",
            ),
        ),
        (
            replace(UNSEEN, driver=(11, 4)),
            WSL,
            fail(
                "torch",
                "torch 2.13.0, for CUDA 12.8, but the NVIDIA driver runs nothing newer than CUDA "
                "11.4: a newer driver is needed, in Windows",
                IN_WINDOWS,
            ),
        ),
        (
            replace(UNSEEN, visible="-1"),
            SOUND,
            fail(
                "torch",
                "torch 2.13.0, for CUDA 12.8, but CUDA_VISIBLE_DEVICES=-1 hides the NVIDIA card",
                "unset CUDA_VISIBLE_DEVICES",
            ),
        ),
        (
            UNSEEN,
            SOUND,
            fail("torch", "torch 2.13.0, for CUDA 12.8, but it sees no card", "nvidia-smi"),
        ),
        (
            with_cards(ADA, KEPLER),
            SOUND,
            fail(
                "torch",
                "torch 2.13.0, for CUDA 12.8, has kernels for sm_75, sm_80, sm_86, sm_90, none of "
                "them for the NVIDIA Tesla K80 (compute capability 3.7)",
                "MODEL_DEVICE=cpu",
            ),
        ),
    ],
)
def test_torch(graphics: GpuReport, here: Machine, finding: Finding) -> None:
    assert cards.check_torch(graphics, here) == finding


@pytest.mark.parametrize(
    ("archs", "card", "runs"),
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
def test_kernels_run_on_their_own_major_version_and_ptx_on_whatever_is_newer(
    archs: tuple[str, ...], card: Card, runs: bool
) -> None:
    finding = cards.check_torch(with_cards(card, archs=archs), SOUND)
    assert (finding.fix == "") is runs


@pytest.mark.parametrize(
    ("wish", "graphics", "finding"),
    [
        ("auto", with_cards(ADA), fine("device", "NVIDIA RTX 4090 (23.0 GiB of 24.0 GiB free)")),
        (
            "cuda",
            with_cards(ADA, TURING),
            fine(
                "device",
                "NVIDIA RTX 4090 (23.0 GiB of 24.0 GiB free) and NVIDIA RTX 2080 Ti (10.0 GiB of "
                "11.0 GiB free)",
            ),
        ),
        (
            "cuda:1",
            with_cards(ADA, TURING),
            fine("device", "NVIDIA RTX 2080 Ti (10.0 GiB of 11.0 GiB free)"),
        ),
        (
            "cuda",
            WITHOUT_CARD,
            fail("device", "MODEL_DEVICE=cuda, but no CUDA device is seen", "MODEL_DEVICE=auto"),
        ),
        (
            "cuda:3",
            with_cards(ADA, TURING),
            fail(
                "device",
                "MODEL_DEVICE=cuda:3, but there are 2 cards, numbered from 0",
                "MODEL_DEVICE=cuda:1",
            ),
        ),
        (
            "mps",
            WITHOUT_CARD,
            fail("device", "MODEL_DEVICE=mps, but this is no Apple GPU", "MODEL_DEVICE=auto"),
        ),
        (
            "cpu",
            with_cards(ADA),
            warn(
                "device",
                "MODEL_DEVICE=cpu leaves the NVIDIA RTX 4090 unused: pictures will be slow",
                "MODEL_DEVICE=auto",
            ),
        ),
        (
            "auto",
            WITHOUT_CARD,
            warn(
                "device",
                "the CPU, since no GPU is seen: SDXL pictures will be slow; smaller ones with "
                "fewer steps are quicker, a GPU of 12 GB or more is the cure",
                'aura generate "a fox" --steps 12',
            ),
        ),
        (
            "auto",
            replace(WITHOUT_CARD, torch=None, problem="broken"),
            skip("device", "not examined, because torch can't be used"),
        ),
    ],
)
def test_device(wish: str, graphics: GpuReport, finding: Finding) -> None:
    assert cards.check_device(read(model_device=wish), graphics, demo=False) == finding


def test_the_apple_gpu_is_taken_as_it_is() -> None:
    torch = Torch("2.13.0", None, (), mps=True, cards=())
    graphics = replace(WITHOUT_CARD, torch=torch)
    finding = cards.check_device(read(model_device="mps"), graphics, demo=False)
    assert finding == fine("device", "the Apple GPU, slower than an NVIDIA card")


@pytest.mark.parametrize(
    ("precision", "card", "finding"),
    [
        ("bf16", ADA, fine("precision", "bf16 on cuda")),
        ("fp16", TURING, fine("precision", "fp16 on cuda")),
        (
            "bf16",
            TURING,
            warn(
                "precision",
                "MODEL_PRECISION=bf16, which the NVIDIA RTX 2080 Ti only emulates, slowly: compute "
                "capability 7.5, and 8.0 is needed",
                "MODEL_PRECISION=fp16",
            ),
        ),
    ],
)
def test_precision_on_a_card(precision: str, card: Card, finding: Finding) -> None:
    assert cards.check_precision(read(model_precision=precision), with_cards(card)) == finding


def test_xformers_are_judged_by_a_probe_that_really_ran() -> None:
    off, on = read(), read(enable_xformers="1")
    assert cards.probe_xformers(off, WITHOUT_CARD) is None
    finding = cards.check_xformers(off, None)
    assert finding == fine("xformers", "off: attention is PyTorch's own")
    finding = cards.check_xformers(on, cards.probe_xformers(on, WITHOUT_CARD))
    if find_spec("xformers") is None:
        assert finding == warn(
            "xformers",
            "ENABLE_XFORMERS=1, but xFormers is not installed, so attention is PyTorch's own",
            "python -m pip install -e '.[xformers]'",
        )
    else:
        assert finding.fix == "ENABLE_XFORMERS=0"


def test_xformers_that_do_not_run_are_turned_off_and_those_that_run_are_left() -> None:
    on = read(enable_xformers="1")
    trouble = "xFormers does not run on cuda with torch.float16 (no kernel image)"
    assert cards.check_xformers(on, trouble) == warn(
        "xformers",
        f"ENABLE_XFORMERS=1, but {trouble}, so attention is PyTorch's own",
        "ENABLE_XFORMERS=0",
    )
    ran = fine("xformers", "a probe of its attention ran on the device")
    assert cards.check_xformers(on, "") == ran
    unused = skip("xformers", "not probed, because the device can't be used")
    assert cards.check_xformers(on, None) == unused


def test_this_machine_s_torch_is_asked() -> None:
    graphics = probe()
    assert graphics.torch is not None and graphics.problem == ""
    assert graphics.torch.version.startswith("2.13")
