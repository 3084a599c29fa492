import pickle

from serve_app.core.capacity.cost_model import Prices, Turn
from serve_app.core.capacity.gpu_time import Spent
from serve_app.core.diffusion.sample import Sample, begin
from serve_app.core.diffusion.schedule import NoiseConfig, make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Sampler, Stage
from serve_app.core.scheduling.step_scheduler import BatchSize, Work
from serve_app.core.service.events import Arrived, Made, ReplicaFacts, Snapshot
from serve_app.core.service.jobs import Claim, Claimed, Job, JobState, Result

SPEC = ImageSpec(prompt="a fox", seed=0, width=64, height=64, steps=4, guidance=5)
SAMPLE: Sample[float] = begin(
    "a", SPEC, make_schedule(NoiseConfig(), Sampler.EULER, 4, None, 1.0), Stage.BASE
)


def test_what_travels_between_processes_arrives_equal() -> None:
    prices = Prices({Turn(Work.STEP, Stage.BASE, "fox", 64, 64, 8): 0.1}, {"fox": BatchSize(4, 8)})
    facts = ReplicaFacts(1, "p", "<idle>", 0, 0, 0, 0, 2.0, 1.0, 0.5, prices, {"a": 3})
    made = Made(b"png", ((Stage.BASE, "p"),), ("cut",))
    result = Result((b"png",), "{}", 1.0)
    job = Job("a", "key:1", "o", 1.0, JobState.SUCCEEDED, None, result)
    claim, claimed = Claim("s", "f", 7), Claimed("a", 7, yours=True)
    arrived = Arrived(SAMPLE, b"png", Spent(2.0), prices)
    for value in (SAMPLE, Snapshot(SAMPLE), arrived, facts, made, job, claim, claimed):
        assert pickle.loads(pickle.dumps(value)) == value
