"""Five times the capacity over HTTP: what is made, what is refused, and who comes back."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate

import pytest

from serve_app.bench.body_memory import Resident
from serve_app.core.capacity.admission import AdmissionLimits
from serve_app.core.diffusion.spec import Stage
from serve_app.testing.faulty_service import FaultyArgs, speed_of
from serve_app.testing.sleeping_stage import NATIVE_SIZE
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Answer, Call, Load, steady
from tests.e2e.chaos.measure import sampled, spread, together
from tests.e2e.chaos.probe import Probe
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, by_kind, count, judge, quantile, tally
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

STEPS, HANDOFF = 30, 0.5  # as many steps on a refiner as on a base replica
ALLOWED_S = 15  # seconds, each caller's deadline
LOAD = 5.0  # times the capacity
SECONDS = 60.0  # of overload
BURST_S = 30.0  # seconds
LIMITS = AdmissionLimits()
REFUSED_WITHIN = 0.05  # seconds, of 99 % of the refusals
BACK_S = 5.0  # seconds after the burst's end plus the bound, when all is normal again
GROWTH = 64.0  # MiB of the ingress's own, apart from Ray's object store


@pytest.fixture
def service(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a service whose images take some four seconds, as SDXL's on four GPUs."""
    with own_service(ray_of_its_own, tmp_path_factory.mktemp("overload")) as service:
        yield service


def batch_seconds(args: FaultyArgs) -> float:
    """Return the seconds in which a full batch passes the slower stage."""
    speed, side = speed_of(args), 4 * NATIVE_SIZE
    base = STEPS / 2 * speed.step(Stage.BASE, side, side, 2 * args.images)
    refiner = STEPS / 2 * speed.step(Stage.REFINER, side, side, 2 * args.images)
    singly = speed.prompt_seconds + speed.decode(side, side)  # on a refiner, for each image
    return max(base + args.images * speed.prompt_seconds, refiner + args.images * singly)


def goodput(made: Sequence[Answer], batch_s: float) -> float:
    """Return the images per second, from when the first one was begun on the slower stage."""
    ends = [answer.ended for answer in made]
    return len(ends) / (max(ends) - min(ends) + batch_s)


def capacity_of(args: FaultyArgs) -> float:
    """Return the images per second in full batches."""
    return args.refiner * args.images / batch_seconds(args)


def most_open(answers: Sequence[Answer]) -> int:
    """Return how many of the requests were open at the same time, as their clients see it.

    An answer on its way is open for its client, but not for the service any more.
    """
    changes = sorted([(a.sent, 1) for a in answers] + [(a.ended, -1) for a in answers])
    return max(accumulate(change for _, change in changes))


def few(service: ChaosService) -> float:
    """Ask for one image for each place of a stage; return the seconds of the slowest."""
    bodies = [image_body(seed, steps=STEPS, handoff=HANDOFF) for seed in range(8)]
    return max(answer.seconds for answer in together(service, bodies))


def test_five_times_the_capacity_with_deadlines(service: ChaosService) -> None:
    batch_s, capacity = batch_seconds(service.args), capacity_of(service.args)
    few(service)
    bodies = [
        image_body(1000 + number, steps=STEPS, handoff=HANDOFF, timeoutSeconds=ALLOWED_S)
        for number in range(int(LOAD * capacity * SECONDS))
    ]
    with Probe(service.address) as probe, Load(service.address) as load:
        load.send(steady(bodies, LOAD * capacity))
        answers = load.answers()
    rate = goodput(by_kind(answers, Kind.MADE), batch_s) / capacity
    refused = [answer for answer in answers if answer.status == 503]
    waits = sorted(int(answer.headers["retry-after"]) for answer in refused)
    report(
        f"{len(answers)} requests at {LOAD:g}x the capacity of {capacity:.2f} images/s, "
        f"timeoutSeconds {ALLOWED_S}",
        f"goodput {rate:.0%}; {tally(answers)}; refusals {spread([a.seconds for a in refused])}, "
        f"Retry-After {waits[0]} to {waits[-1]} s; /health {spread(probe.seconds)}, "
        f"{probe.failed} failed",
        "goodput >= 95 % of full batches that never wait for the processor; all others refused",
    )
    assert rate >= 0.95
    kinds = count(answers)
    late = kinds.pop("504 DEADLINE_EXCEEDED", 0)
    assert set(kinds) == {"made", "503 OVERLOADED"}
    assert late <= service.args.images
    assert probe.failed == 0


def test_five_times_the_capacity_without_deadlines_has_a_bound(service: ChaosService) -> None:
    calm = few(service)
    rate = LOAD * capacity_of(service.args)
    bodies = [
        image_body(1000 + number, steps=STEPS, handoff=HANDOFF)
        for number in range(int(rate * SECONDS))
    ]
    canary = Call(image_body(0, timeoutSeconds=20), at=SECONDS - 5, group="canary")
    ingress = service.processes.ingress()
    before = Resident.of(ingress)
    with (
        sampled(lambda: Resident.of(ingress)) as memory,
        Probe(service.address) as health,
        Load(service.address) as load,
    ):
        with Probe(service.address, "/livez") as trivial:
            load.send([*steady(bodies, rate), canary])
            time.sleep(SECONDS)
        lags = list(load.lags)
        answers = load.answers()
    service.wait_idle()
    last = max(answer.sent for answer in answers)
    drained = max(answer.ended for answer in answers) - last
    normal = few(service)
    refusals = [answer.seconds for answer in answers if answer.status == 503]
    admitted = most_open([answer for answer in answers if answer.status != 503])
    (bird,) = [answer for answer in answers if answer.call.group]
    peak = max((size for _, size in memory if size), key=lambda size: size.all)
    grown = peak.own - before.own
    report(
        f"{len(bodies)} requests at {LOAD:g}x the capacity without deadlines, in {SECONDS:.0f} s",
        f"{tally(answers)}; at most {admitted} admitted at a time; refusals {spread(refusals)} "
        f"(/livez meanwhile {spread(trivial.seconds)}; the clients' own lag {spread(lags)}); one "
        f"that allows 20 s: {judge(bird)} after {bird.seconds:.2f} s; /health "
        f"{spread(health.seconds)}, {health.failed} failed; ingress {before.all:.0f} MiB, "
        f"{peak.all - before.all:+.0f}, of which its own {grown:+.0f}; done "
        f"{drained:.0f} s after the last came, then 8 images in {normal:.1f} s (before "
        f"{calm:.1f} s)",
        f"at most {LIMITS.open_requests} admitted, the others refused at once (p99 <= 50 ms); "
        f"/health p99 <= 200 ms; back to normal {LIMITS.queue_seconds + BACK_S:.0f} s later",
    )
    assert set(count(answers)) == {"made", "503 OVERLOADED"}
    on_their_way = service.args.refiner * service.args.images  # a batch of each replica
    assert admitted <= LIMITS.open_requests + on_their_way
    assert bird.status == 503
    assert quantile(refusals, 0.99) <= REFUSED_WITHIN
    assert quantile(health.seconds, 0.99) <= 0.2
    assert health.failed == 0
    assert grown <= GROWTH
    assert drained <= LIMITS.queue_seconds + BACK_S
    assert normal <= 1.5 * calm


def test_who_was_refused_in_a_burst_is_accepted_after_the_time_that_it_was_given(
    service: ChaosService,
) -> None:
    few(service)
    rate = LOAD * capacity_of(service.args)
    bodies = [
        image_body(1000 + number, steps=STEPS, handoff=HANDOFF, timeoutSeconds=ALLOWED_S)
        for number in range(int(rate * BURST_S))
    ]
    with Load(service.address) as load:

        def come_back(future: Future[Answer]) -> None:
            answer = future.result()
            if answer.status == 503:
                wait = int(answer.headers["retry-after"])
                returns.append((answer, load.send([Call(answer.call.body, at=wait)])[0]))

        returns: list[tuple[Answer, Future[Answer]]] = []
        began = time.monotonic()
        first = load.send(steady(bodies, rate))
        for future in first:
            future.add_done_callback(come_back)
        answers = [future.result() for future in first]
        until(lambda: len(returns) == sum(answer.status == 503 for answer in answers))
        again = [future.result() for _, future in returns]
        seconds = time.monotonic() - began
    during = [answer for answer in again if answer.sent < began + BURST_S]
    after = [answer for answer in again if answer.sent >= began + BURST_S]
    waits = sorted(int(answer.headers["retry-after"]) for answer, _ in returns)

    def share(part: Sequence[Answer]) -> str:
        return f"{accepted(part):.0%} of {len(part)}"

    report(
        f"a burst of {BURST_S:.0f} s at {LOAD:g}x, timeoutSeconds {ALLOWED_S}; who is refused "
        "comes back once after its Retry-After",
        f"{tally(answers)}; Retry-After {waits[0]} to {waits[-1]} s; accepted when they came back: "
        f"{share(during)} during the burst, {share(after)} after it ({tally(after)}); over after "
        f"{seconds:.0f} s",
        ">= 80 % of those who come back after the burst are accepted",
    )
    assert {judge(answer).kind for answer in [*answers, *again]} <= {Kind.MADE, Kind.ERROR}
    assert accepted(after) >= 0.8


def accepted(answers: Sequence[Answer]) -> float:
    """Return the share of requests that were made in their time."""
    return len(by_kind(answers, Kind.MADE)) / max(1, len(answers))
