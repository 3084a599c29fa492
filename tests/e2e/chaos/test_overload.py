"""Five times the capacity over HTTP: what is made, what is refused, and who comes back."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.testing.faulty_service import FaultyArgs, speed_of
from serve_app.testing.sleeping_stage import NATIVE_SIZE
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Answer, Call, Load, steady
from tests.e2e.chaos.measure import spread, together
from tests.e2e.chaos.probe import Probe
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, by_kind, count, judge, tally
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

STEPS, HANDOFF = 30, 0.5  # as many steps on a refiner as on a base replica
ALLOWED_S = 15  # seconds, each caller's deadline
LOAD = 5.0  # times the capacity
SECONDS = 60.0  # of overload
BURST_S = 30.0  # seconds


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
