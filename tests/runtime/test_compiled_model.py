"""A model whose aspect sizes are compiled, with the real torch.compile."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import DeviceError
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.engine import Engine
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.stage_model import StageModel
from tests.support.engine_runs import generate

SPEC = ImageSpec(prompt="a red circle", seed=4, width=128, height=128, steps=4, guidance=5)


def test_a_machine_without_a_compiler_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"needs a C\+\+ compiler") as refused:
        open_device("cpu", precision=None, xformers=False, cpu_threads=1, compile_mode="full")
    assert refused.value.subject == "MODEL_COMPILE=full"


def test_the_numeric_profile_says_what_is_compiled(cpu: Device) -> None:
    compiled = replace(cpu, compile_mode="regions")
    names = {device.numeric_profile(Stage.BASE, 4, "demo").name for device in (cpu, compiled)}
    assert len(names) == 2


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_compiled_pictures_are_near_the_eager_ones_and_the_same_in_any_company(
    checkpoints: dict[Stage, Checkpoint],
    cpu: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain = replace(cpu, prepacked=False)
    device = replace(plain, compile_mode="regions")
    compiled = build_stage_model(checkpoints[Stage.BASE], device, images=2, strict=True)
    eager = build_stage_model(checkpoints[Stage.BASE], plain, images=2, strict=True)
    specs = [replace(SPEC, seed=seed) for seed in (4, 5)]
    alone, together = pictures(compiled, *specs[:1]), pictures(compiled, *specs)
    assert alone[0] == together[0]
    pixels = [np.frombuffer(pictures(model, SPEC)[0], np.uint8) for model in (compiled, eager)]
    assert np.abs(pixels[0].astype(int) - pixels[1]).max() <= 2
    other = replace(SPEC, width=136)  # no aspect ratio's size: eager in both
    assert pictures(compiled, other) == pictures(eager, other)


def pictures(model: StageModel, *specs: ImageSpec) -> list[bytes]:
    return generate(Engine(ModelCache.of(model), snapshot_every=100), *specs)
