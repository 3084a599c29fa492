"""Five times the capacity over HTTP, with deadlines: what is made in time, and the refusals."""

from collections.abc import Iterator, Sequence

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.testing.faulty_service import FaultyArgs, speed_of
from serve_app.testing.sleeping_stage import NATIVE_SIZE
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Answer, Load, steady
from tests.e2e.chaos.measure import spread, together
from tests.e2e.chaos.probe import Probe
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_service
from tests.e2e.chaos.verdict import Kind, by_kind, count, tally

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

STEPS, HANDOFF = 30, 0.5  # as many steps on a refiner as on a base replica
ALLOWED_S = 15  # seconds, each caller's deadline
LOAD = 5.0  # times the capacity
SECONDS = 60.0  # of overload


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


def test_five_times_the_capacity_with_deadlines(service: ChaosService) -> None:
    batch_s = batch_seconds(service.args)
    capacity = service.args.refiner * service.args.images / batch_s
    together(service, [image_body(seed, steps=STEPS, handoff=HANDOFF) for seed in range(8)])
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
