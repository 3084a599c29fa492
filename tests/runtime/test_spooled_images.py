"""Images that go on from a file of the spool, on other engines: to the same bytes."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.diffusion.sample import StageSegment, for_stage, stage_segments
from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import ProfileChanged
from serve_app.core.service.tasks import ImageSnapshot
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.lora_file import inspect_lora
from serve_app.runtime.engine import Engine
from serve_app.runtime.live_sample import HostSample
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.stage_model import StageModel
from serve_app.spool.folder import SpoolFolder
from tests.support.engine_runs import Heard, drain, sample_of
from tests.support.keys import lora
from tests.support.lora_engines import engine_over
from tests.support.lora_files import lora_file
from tests.support.spooled_jobs import spooled_job

SPEC = ImageSpec(
    prompt="a red circle",
    seed=11,
    width=128,
    height=128,
    steps=10,
    guidance=5,
    sampler=Sampler.DPMPP_2M_SDE,  # keeps a state, and draws noise at every step
    strength=0.8,
    handoff=0.5,
    extensions=(lora("ink", 0.7),),
)


@pytest.fixture(scope="module")
def engines(
    checkpoints: dict[Stage, Checkpoint],
    models: dict[str, dict[Stage, StageModel]],
    cpu: Device,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Stage, Engine]:
    """Make engines that take a snapshot after every step; base has a LoRA."""
    ticks = count()
    file = tmp_path_factory.mktemp("lora") / "ink.safetensors"
    ink = inspect_lora(lora_file(demo_folder(Stage.BASE), file))
    refiner = ModelCache.of(models["strict"][Stage.REFINER])
    return {
        Stage.BASE: engine_over(checkpoints[Stage.BASE], cpu, {"ink": ink}),
        Stage.REFINER: Engine(refiner, snapshot_every=1, clock=lambda: float(next(ticks))),
    }


@pytest.fixture
def spool(tmp_path: Path) -> SpoolFolder:
    folder = SpoolFolder(tmp_path / "spool")
    folder.open()
    return folder


def run(engine: Engine, sample: HostSample, segment: StageSegment) -> Heard:
    heard = Heard()
    engine.submit(sample, segment, heard)
    drain(engine)
    return heard


def through_file(spool: SpoolFolder, sample: HostSample, source: bytes) -> HostSample:
    """Return a sample as it comes back from a file, for another job."""
    job = replace(spooled_job(), inputs=(ImageInputs(source),), images=(ImageSnapshot(sample),))
    spool.write(job)[0].release()
    taken = spool.take(job.id)
    assert taken is not None
    taken[0].delete()
    (snapshot,) = taken[1].images
    assert snapshot is not None
    return replace(snapshot.sample, id=f"again, from {sample.index}")


def test_an_image_with_everything_goes_on_from_its_file_at_both_stages(
    engines: dict[Stage, Engine], spool: SpoolFolder, photo: bytes
) -> None:
    base, refiner = engines[Stage.BASE], engines[Stage.REFINER]
    first = sample_of(SPEC, source=photo, refiner=True)
    to_handoff, to_end = stage_segments(first.schedule, SPEC.handoff, refiner=True)
    of_base = run(base, first, to_handoff)
    handed_over = for_stage(of_base.finished.sample, Stage.REFINER)
    of_refiner = run(refiner, handed_over, to_end)
    whole = of_refiner.picture.tobytes()

    middle = of_base.snapshots[-2]
    assert middle.solver_state
    for interrupted in (first, middle):
        resumed = run(base, through_file(spool, interrupted, photo), to_handoff).finished.sample
        end = run(refiner, for_stage(resumed, Stage.REFINER), to_end)
        assert end.picture.tobytes() == whole
        assert resumed.profile == of_base.finished.sample.profile
    middle = of_refiner.snapshots[1]
    assert middle.solver_state
    resumed = through_file(spool, middle, photo)
    assert resumed.profiles == middle.profiles
    assert run(refiner, resumed, to_end).picture.tobytes() == whole


def test_a_sample_of_another_profile_is_known_as_one_after_its_file(
    engines: dict[Stage, Engine], spool: SpoolFolder, photo: bytes
) -> None:
    """The conductor then begins the image anew: see `tests/deployments/test_resume.py`."""
    first = sample_of(SPEC, source=photo, refiner=True)
    (to_handoff, _) = stage_segments(first.schedule, SPEC.handoff, refiner=True)
    middle = run(engines[Stage.BASE], first, to_handoff).snapshots[1]
    foreign = through_file(spool, replace(middle, profile="base-float32-4-00000000"), photo)
    heard = run(engines[Stage.BASE], foreign, to_handoff)
    assert isinstance(heard.failed.error, ProfileChanged)
