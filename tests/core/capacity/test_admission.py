"""Who is admitted beside what is owed, on images of four seconds in batches of four."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.caller import Caller
from serve_app.core.capacity.admission import (
    AdmissionLimits,
    Decision,
    Newcomer,
    Refusal,
    StageQueue,
    StageWork,
    decide,
    latest_start,
    preview,
)
from serve_app.core.diffusion.spec import Stage

ADA, BEA, CY = Caller("ada"), Caller("bea"), Caller("cy")
LIMITS = AdmissionLimits(queue_seconds=100, open_requests=50)
IMAGE = StageWork(Stage.BASE, 1, amortized=1.0, isolated=4.0, batched=4.0)


def queue(seconds: float = 0.0, *, replicas: int = 2, loading: float = 0.0) -> StageQueue:
    """Return a queue in which Ada is owed GPU-seconds for images like `IMAGE`."""
    owed = {ADA: seconds} if seconds else {}
    return StageQueue(replicas, 4, int(seconds), owed, seconds, loading)


def shared(seconds: float) -> StageQueue:
    """Return a queue in which Ada and Bea are owed GPU-seconds each, and Bea is the newcomer."""
    return replace(queue(seconds), owed={ADA: seconds, BEA: seconds})


def judged(
    base: StageQueue,
    seconds_left: float | None = None,
    *works: StageWork,
    refiner: StageQueue | None = None,
    caller: Caller = ADA,
    open_requests: int = 1,  # of a caller who has nothing owed
    limits: AdmissionLimits = LIMITS,
) -> Decision:
    queues = {Stage.BASE: base, Stage.REFINER: refiner or queue()}
    newcomer = Newcomer(caller, works or (IMAGE,), seconds_left)
    return decide(newcomer, queues, {CY: open_requests}, limits)


def test_before_anything_is_known_only_the_number_of_requests_counts() -> None:
    newcomer = Newcomer(ADA, (), seconds_left=0.001)
    assert decide(newcomer, {Stage.BASE: queue(1e6)}, {CY: 49}, LIMITS) == Decision(None)
    refused = decide(newcomer, {Stage.BASE: queue()}, {CY: 50}, LIMITS)
    assert refused.refusal is Refusal.OPEN_REQUESTS
    assert decide(newcomer, {}, {CY: 50}, LIMITS).fits_in == 0


def test_an_idle_service_admits_all_that_it_could_make_in_time() -> None:
    tiny = AdmissionLimits(queue_seconds=0.001)
    assert judged(queue(), limits=tiny) == Decision(None, 0, 0, 4, 4, 0, 0.5)
    assert judged(queue(), 3.3).refusal is None  # the prediction may be a fifth too long
    assert judged(queue(), 3.1).refusal is Refusal.IMPOSSIBLE


def test_an_image_takes_longer_beside_others_than_alone() -> None:
    """Alone its steps have a quarter of the rows: what is sure is that it can't take less."""
    image = replace(IMAGE, isolated=1.0)
    assert judged(queue(), None, image).own == 1.0
    assert judged(queue(), 0.7, image).refusal is Refusal.IMPOSSIBLE
    assert judged(queue(1), None, image).own == 1.0  # there are two replicas
    assert judged(queue(2), None, image).own == 2.0
    assert judged(queue(6), None, image).own == 4.0
    assert judged(queue(6), None, image).alone == 1.0
    nearly_done = replace(queue(6), owed={ADA: 0.5})
    assert judged(nearly_done, None, image).own == 1.0 + (0.5 + 1.0) / 2
    assert judged(queue(), None, replace(image, images=3, amortized=3.0)).own == 2.0
    assert judged(queue(6), 3.3, image).refusal is None
    assert judged(queue(6), 3.1, image).refusal is Refusal.DEADLINE
    assert judged(queue(20), 15.1, image).refusal is None
    refused = judged(queue(20), 14.9, image)
    assert (refused.refusal, refused.wait, refused.own) == (Refusal.DEADLINE, 10.0, 4.0)


def test_free_places_are_no_wait() -> None:
    assert judged(queue(7)).wait == 0
    assert judged(queue(8)).wait == 4
    assert judged(queue(7), None, replace(IMAGE, images=2, amortized=2.0)).wait == 3.5


def test_loading_the_job_s_own_model_is_part_of_its_time() -> None:
    """A deadline that only the loading makes impossible is one of its own: it may pass later."""
    newcomer = Newcomer(ADA, (IMAGE,), loading=60.0)
    queues = {Stage.BASE: queue()}
    assert decide(newcomer, queues, {}, LIMITS) == Decision(None, 0, 0, 64, 64, 0, 0.5)
    for left, refusal in (
        (51.3, None),  # the prediction may be a fifth too long
        (51.1, Refusal.LOADING),
        (3.3, Refusal.LOADING),
        (3.1, Refusal.IMPOSSIBLE),
    ):
        assert decide(replace(newcomer, seconds_left=left), queues, {}, LIMITS).refusal is refusal
    waiting = replace(newcomer, seconds_left=64 + 10)
    assert decide(waiting, {Stage.BASE: queue(20)}, {}, LIMITS).refusal is Refusal.DEADLINE


def test_a_deadline_has_room_for_a_wait_that_is_a_tenth_longer() -> None:
    assert judged(queue(20), 15.1).refusal is None  # ten seconds of others, four of its own
    refused = judged(queue(20), 14.9)
    assert refused.refusal is Refusal.DEADLINE
    assert refused.fits_in == pytest.approx(10 - 10.9 / 1.1)


def test_a_refused_job_fits_once_so_much_is_done() -> None:
    refused = judged(queue(60), 15)
    later = queue(60 - 2 * refused.fits_in - 1e-6)
    assert judged(later, 15).refusal is None


def test_nobody_waits_for_others_longer_than_the_limit() -> None:
    """Ada and Bea have as much to do, and Bea's newcomer waits for both."""
    assert judged(shared(200), caller=BEA).refusal is None
    refused = judged(shared(220), caller=BEA)
    assert (refused.refusal, refused.wait, refused.others) == (Refusal.QUEUE, 220, 110)
    assert refused.fits_in == 20  # meanwhile half of what is done is Bea's own
    assert judged(shared(220 - 20), caller=BEA).refusal is None


@pytest.mark.parametrize("stage", Stage)
def test_a_lone_caller_waits_for_nobody(stage: Stage) -> None:
    """Its own work may take hours: it is bounded by the number of jobs and by deadlines."""
    waiting = judged(queue(20_000), None, replace(IMAGE, stage=stage), refiner=queue(20_000))
    assert (waiting.refusal, waiting.wait, waiting.others) == (None, 10_000, 0)
    late = judged(queue(20_000), 9_000, replace(IMAGE, stage=stage), refiner=queue(20_000))
    assert late.refusal is Refusal.DEADLINE


def test_others_models_count_as_others_work() -> None:
    refused = judged(queue(20, loading=101))
    assert (refused.refusal, refused.wait, refused.others) == (Refusal.QUEUE, 111, 101)


def test_work_of_others_that_goes_on_beside_one_s_own_delays_nothing() -> None:
    works = (IMAGE, replace(IMAGE, stage=Stage.REFINER))
    refiner = StageQueue(2, 4, 400, {BEA: 400.0}, 0.0)
    waiting = judged(queue(2_000), None, *works, refiner=refiner)
    assert (waiting.refusal, waiting.wait, waiting.others) == (None, 1_000, 0)


def test_a_caller_with_little_work_does_not_wait_for_another_s_flood() -> None:
    flood = queue(10_000)
    assert judged(flood, 15).refusal is Refusal.DEADLINE
    bea = replace(flood, earlier=0.0)
    assert judged(bea, 15, caller=BEA) == Decision(None, 0.5, 0.5, 4, 4, 0, 0.5)


def test_too_many_open_requests_are_refused_until_one_has_ended() -> None:
    refused = judged(queue(20), open_requests=50)
    assert (refused.refusal, refused.fits_in) == (Refusal.OPEN_REQUESTS, 10 / 50)


@pytest.mark.parametrize("open_requests", [0, -1])
def test_limits_that_admit_nothing_are_an_error(open_requests: int) -> None:
    with pytest.raises(ValueError, match="at least one request"):
        AdmissionLimits(open_requests=open_requests)


def test_others_models_to_load_are_part_of_the_wait() -> None:
    assert judged(queue(20, loading=30)).wait == 40
    assert judged(queue(loading=30)).wait == 0


def test_the_slower_stage_of_the_pipeline_decides() -> None:
    works = (IMAGE, replace(IMAGE, stage=Stage.REFINER))
    assert judged(queue(20), None, *works).wait == 10
    both = judged(queue(20), None, *works, refiner=queue(20))
    assert both.wait == 10  # the refiner works while the image is still at base
    assert judged(queue(20), None, *works, refiner=queue(60)).wait == 26
    assert judged(queue(), None, *works).own == 8


def test_a_job_of_many_images_takes_several_batches() -> None:
    nine = replace(IMAGE, images=9, amortized=9.0)
    alone = judged(queue(), None, nine)
    assert (alone.refusal, alone.own, alone.service_seconds) == (None, 8, 4.5)
    assert judged(queue(), 4.0, nine).refusal is None  # perhaps, if batches were divided
    assert judged(queue(), 3.5, nine).refusal is Refusal.IMPOSSIBLE
    works = (nine, replace(IMAGE, stage=Stage.REFINER))
    assert judged(queue(), None, *works).own == 12


def test_a_stage_without_replicas_counts_as_one() -> None:
    assert judged(queue(20, replicas=0)).wait == 20


def test_an_image_may_start_until_four_fifths_of_its_seconds_are_left() -> None:
    assert latest_start(100.0, 10.0) == 92.0


def crowded(seconds: float, own: float = 1.0) -> StageQueue:
    """Return what a thousand callers are owed, and Bea, so that her newcomer waits for them all."""
    owed = {Caller(f"caller {number}"): seconds / 1000 for number in range(1000)}
    return StageQueue(1, 4, 100, {**owed, BEA: own}, own)


def previewed(*queues: StageQueue, seconds_left: float | None = None, jobs: int = 1) -> Decision:
    """Return the decision on a job of Bea's that passes as many stages as there are queues."""
    stages = tuple(Stage)[: len(queues)]
    by_stage = dict(zip(stages, queues, strict=True))
    return preview(BEA, stages, by_stage, {CY: jobs}, LIMITS, seconds_left)


def test_an_unknown_job_is_refused_where_there_are_too_many_or_too_much_before_it() -> None:
    assert previewed(crowded(50)).refusal is None
    assert previewed(jobs=49).refusal is None  # nothing is known of costs
    assert previewed(jobs=50).refusal is Refusal.OPEN_REQUESTS
    full = previewed(crowded(110))
    assert full.refusal is Refusal.QUEUE
    assert (full.wait, full.others) == pytest.approx((111, 110))
    assert full.fits_in == pytest.approx(10 * 111 / 110)
    late = previewed(crowded(50), seconds_left=56)
    assert late.refusal is Refusal.DEADLINE
    assert late.fits_in == pytest.approx(51 - 56 / 1.1)
    assert previewed(crowded(50), seconds_left=57).refusal is None
    assert previewed(crowded(110), seconds_left=-1).refusal is None  # `decide` says impossible


def test_an_unknown_job_s_own_time_may_hide_the_second_queue() -> None:
    """What is refused because of it would be admitted if base took long enough."""
    assert previewed(crowded(90), crowded(124)).refusal is None
    works = (
        replace(IMAGE, amortized=3, isolated=50, batched=50),
        replace(IMAGE, stage=Stage.REFINER),
    )
    longer = judged(crowded(90), None, *works, refiner=crowded(124), caller=BEA)
    assert longer.refusal is None
    assert previewed(crowded(110), crowded(10)).refusal is Refusal.QUEUE
    assert previewed(crowded(110), crowded(10, own=80)).refusal is None
    assert previewed(crowded(110), crowded(124)).refusal is Refusal.QUEUE


SECONDS = st.integers(0, 160)  # about as many as the limit
CROWD = Caller("crowd", 1000.0)  # as a thousand callers: a newcomer waits for nearly all of it


@st.composite
def queue_pairs(draw: st.DrawFn) -> tuple[StageQueue, StageQueue]:
    """Return a queue as an unknown job finds it, and as any real one of Bea's may find it."""
    own = draw(SECONDS)
    owed = {CROWD: float(draw(SECONDS)), BEA: float(own)}
    earlier = draw(st.integers(0, own))
    images = draw(st.sampled_from([99, 99, 99, 3]))
    best = StageQueue(draw(st.integers(0, 2)), 4, images, owed, earlier)
    batch, later = draw(st.integers(1, 4)), draw(st.integers(earlier, own))
    loading = draw(st.sampled_from([0, 0, 30]))
    return best, replace(best, batch_images=batch, earlier=later, loading=loading)


@settings(max_examples=500)
@given(
    st.lists(queue_pairs(), min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(1, 4), SECONDS, SECONDS, SECONDS), min_size=2, max_size=2),
    st.one_of(st.none(), SECONDS),
    st.sampled_from([1, 1, 1, 60]),
    st.sampled_from([0, 0, 30]),
)
def test_a_job_that_could_be_admitted_is_never_refused_before_it_is_known(
    pairs: list[tuple[StageQueue, StageQueue]],
    works: list[tuple[int, float, float, float]],
    seconds_left: float | None,
    jobs: int,
    loading: float,
) -> None:
    stages = tuple(Stage)[: len(pairs)]
    best = {stage: pair[0] for stage, pair in zip(stages, pairs, strict=True)}
    real = {stage: pair[1] for stage, pair in zip(stages, pairs, strict=True)}
    job = [StageWork(stage, *work) for stage, work in zip(stages, works, strict=False)]
    if preview(BEA, stages, best, {CY: jobs}, LIMITS, seconds_left).refusal is not None:
        newcomer = Newcomer(BEA, job, seconds_left, loading)
        assert decide(newcomer, real, {CY: jobs}, LIMITS).refusal is not None
