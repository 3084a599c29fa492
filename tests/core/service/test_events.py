import pickle

from serve_app.core.capacity.cost_model import CostTable, TurnKind
from serve_app.core.capacity.gpu_time import GpuTime
from serve_app.core.diffusion.sample import Sample, new_sample
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Sampler, Stage
from serve_app.core.scheduling.step_scheduler import BatchSize, WorkKind
from serve_app.core.service.events import GeneratedImage, ReplicaStats, SegmentDone, Snapshot
from serve_app.core.service.jobs import ClaimResult, IdempotencyClaim, Job, JobResult, JobState

SPEC = ImageSpec(prompt="a fox", seed=0, width=64, height=64, steps=4, guidance=5)
SAMPLE: Sample[float] = new_sample(
    "a", SPEC, make_schedule(NoiseConfig(), Sampler.EULER, 4, None, 1.0), Stage.BASE
)


def test_what_travels_between_processes_arrives_equal() -> None:
    prices = CostTable(
        {TurnKind(WorkKind.STEP, Stage.BASE, "fox", 64, 64, 8): 0.1}, {"fox": BatchSize(4, 8)}
    )
    facts = ReplicaStats(1, "p", "<idle>", 0, 0, 0, 0, 2.0, 1.0, 0.5, prices, {"a": 3})
    made = GeneratedImage(b"png", ((Stage.BASE, "p"),), ("cut",))
    result = JobResult((b"png",), "{}", 1.0)
    job = Job("a", "key:1", "o", 1.0, JobState.SUCCEEDED, None, result)
    claim, claimed = IdempotencyClaim("s", "f", 7), ClaimResult("a", 7, is_owner=True)
    arrived = SegmentDone(SAMPLE, b"png", GpuTime(2.0), prices)
    for value in (SAMPLE, Snapshot(SAMPLE), arrived, facts, made, job, claim, claimed):
        assert pickle.loads(pickle.dumps(value)) == value
