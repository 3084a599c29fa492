import pickle

from serve_app.core.events import Arrived, Made, ReplicaFacts, Snapshot
from serve_app.core.job import Claim, Claimed, Job, JobState, Result
from serve_app.core.sample import Sample, begin
from serve_app.core.schedule import NoiseConfig, make_schedule
from serve_app.core.spec import ImageSpec, Sampler, Stage

SPEC = ImageSpec(prompt="a fox", seed=0, width=64, height=64, steps=4, guidance=5)
SAMPLE: Sample[float] = begin(
    "a", SPEC, make_schedule(NoiseConfig(), Sampler.EULER, 4, None, 1.0), Stage.BASE
)


def test_what_travels_between_processes_arrives_equal() -> None:
    facts = ReplicaFacts(1, "p", "<idle>", 0, 0, 0, 0, 0.0, {"a": 3})
    made = Made(b"png", ((Stage.BASE, "p"),), ("cut",))
    result = Result((b"png",), "{}", 1.0)
    job = Job("a", "key:1", "o", 1.0, JobState.SUCCEEDED, None, result)
    claim, claimed = Claim("s", "f", 7), Claimed("a", 7, yours=True)
    arrived = Arrived(SAMPLE, b"png", 2.0)
    for value in (SAMPLE, Snapshot(SAMPLE), arrived, facts, made, job, claim, claimed):
        assert pickle.loads(pickle.dumps(value)) == value
