"""What several ingress processes admit together, and when those who were sent away come back."""

from itertools import count
from math import ceil

import pytest

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.capacity.admission import AdmissionLimits, Refusal, StageWork
from serve_app.core.capacity.admission_control import (
    EXCHANGE_INTERVAL_S,
    AdmissionControl,
    StageCapacity,
    Verdict,
)
from serve_app.core.capacity.owed_work import OwedImage
from serve_app.core.diffusion.spec import Stage

ADA, BEA = Caller("ada"), Caller("bea")
IMAGE = StageWork(Stage.BASE, 1, amortized=1.0, isolated=4.0, batched=4.0)
CAPACITY = {Stage.BASE: StageCapacity(replicas=1, batch_images=4)}


class Ingress(AdmissionControl):
    """An ingress process that admits equal images, by default each of a caller of its own."""

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        super().__init__((Stage.BASE,), limits or AdmissionLimits(10.0, 1000))
        self._callers = count()
        self._open: list[Caller] = []

    def ask(self, now: float, deadline: float | None = None, by: Caller | None = None) -> Verdict:
        caller = by or Caller(f"{id(self)}-{next(self._callers)}")
        verdict = self.judge(caller, [IMAGE], now + 4, deadline, CAPACITY, now)
        if verdict.refusal is None:
            self.begin_job(caller)
            self._open.append(caller)
            self.owed.put(str(self.jobs), OwedImage(caller, now + 4, {Stage.BASE: 1.0}))
        return verdict

    def end(self) -> None:
        """End the job that was admitted last."""
        self.owed.remove(str(self.jobs))
        self.end_job(self._open.pop())

    def admit_all(self, count: int, now: float) -> int:
        """Return how many of so many requests are admitted."""
        return sum(self.ask(now).refusal is None for _ in range(count))


def test_a_queue_fills_to_its_limit_and_the_refused_are_sent_behind_each_other() -> None:
    ingress = Ingress()
    assert ingress.admit_all(50, now=0.0) == 11
    waits = [ingress.ask(0.0).retry_after for _ in range(3)]
    assert waits == sorted(waits)
    assert waits[2] - waits[0] in (2, 3)  # one second each, at nine tenths of the rate
    assert ingress.drain_seconds(CAPACITY, 0.0) == 11


@pytest.mark.parametrize(("queue_seconds", "bound"), [(10.0, 120.0), (200.0, 200.0)])
def test_a_client_that_ignores_its_retry_after_is_not_sent_away_for_ever_longer(
    queue_seconds: float, bound: float
) -> None:
    """It asks four times a second, one image is done each second, and twelve may be open."""
    ingress = Ingress(AdmissionLimits(queue_seconds, 12))
    most = 0.0
    for quarter in range(1, 2400):
        verdict = ingress.ask(quarter / 4, by=ADA)
        assert verdict.retry_after <= 1 + bound / 0.9 + 1
        most = max(most, *ingress.load(quarter / 4).sent_away.values(), 0.0)
        if quarter % 4 == 0:
            ingress.end()
    assert verdict.refusal in (None, Refusal.OPEN_REQUESTS)
    assert bound - 0.25 <= most <= bound  # a quarter of a second may have drained
    assert not ingress.load(600 + bound / 0.9).sent_away


def test_a_deadline_that_nothing_can_meet_is_not_booked() -> None:
    ingress = Ingress()
    verdict = ingress.ask(5.0, deadline=6.0)
    assert (verdict.refusal, verdict.retry_after) == (Refusal.IMPOSSIBLE, 0)
    loading = ingress.judge(ADA, [IMAGE], 9.0, 15.0, CAPACITY, 5.0, loading=60.0)
    assert (loading.refusal, loading.retry_after) == (Refusal.LOADING, 0)
    assert not ingress.load(5.0).sent_away
    assert ingress.ask(5.0, deadline=9.0).refusal is None


def test_a_process_counts_what_the_others_have_admitted() -> None:
    first, second = Ingress(), Ingress()
    assert first.admit_all(50, now=0.0) == 11
    second.update_others([first.load(0.0)], 0.0)
    refused = second.ask(0.0)
    assert refused.refusal is Refusal.QUEUE
    assert refused.retry_after > 39 / 0.9  # those whom the other process sent away come first
    assert second.drain_seconds(CAPACITY, 0.0) == 11


def test_without_news_each_other_process_counts_as_much_as_this_one() -> None:
    limits = AdmissionLimits(queue_seconds=1e9, open_requests=11)
    first, second = Ingress(limits), Ingress(limits)
    second.update_others([first.load(0.0)], 0.0)
    late = 3 * EXCHANGE_INTERVAL_S + 0.1
    assert second.admit_all(50, now=late) == 6  # half of what one process alone admits
    assert sum(second.others(late).jobs.values()) == 6
    assert second.drain_seconds(CAPACITY, late) == 12


def test_a_single_process_never_counts_others() -> None:
    ingress = Ingress()
    ingress.update_others([], 0.0)
    assert ingress.admit_all(50, now=1000.0) == 11


@pytest.mark.parametrize("processes", [2, 3])
def test_a_stale_view_admits_too_much_by_what_arrives_between_two_exchanges(
    processes: int,
) -> None:
    """Compare with one process: more is admitted by at most one interval's arrivals elsewhere."""
    per_interval = 2  # requests at each process, of a second each; one a second is done
    ingresses = [Ingress() for _ in range(processes)]
    for second in range(60):
        now = second * EXCHANGE_INTERVAL_S
        loads = [ingress.load(now) for ingress in ingresses]
        for number, ingress in enumerate(ingresses):
            ingress.update_others([*loads[:number], *loads[number + 1 :]], now)
        for ingress in ingresses:
            ingress.admit_all(per_interval, now)
        owed = sum(ingress.owed.total(Stage.BASE) for ingress in ingresses)
        assert owed <= 11 + (processes - 1) * per_interval
        busiest = max(ingresses, key=lambda ingress: ingress.owed.total(Stage.BASE))
        busiest.end()
    assert owed >= 10


def test_the_number_of_open_requests_is_that_of_all_processes() -> None:
    limits = AdmissionLimits(queue_seconds=1e9, open_requests=8)
    first, second = Ingress(limits), Ingress(limits)
    assert first.admit_all(5, now=0.0) == 5
    second.update_others([first.load(0.0)], 0.0)
    assert second.admit_all(50, now=0.0) == 2  # the first one may have admitted one more meanwhile
    second.update_others([first.load(1.0)], 1.0)
    assert second.admit_all(50, now=1.0) == 1
    assert second.ask(0.0).refusal is Refusal.OPEN_REQUESTS


@pytest.mark.parametrize("processes", [2, 3])
def test_a_flood_that_comes_to_all_processes_at_once_leaves_room_for_others(
    processes: int,
) -> None:
    limits = AdmissionLimits(queue_seconds=1e9, open_requests=256)
    ingresses = [Ingress(limits) for _ in range(processes)]
    loads = [ingress.load(0.0) for ingress in ingresses]
    for ingress in ingresses:
        ingress.update_others(loads[1:], 0.0)
    for _ in range(300):
        for ingress in ingresses:
            ingress.ask(0.1, by=ADA)
    loads = [ingress.load(1.0) for ingress in ingresses]
    assert sum(load.jobs.get(ADA, 0) for load in loads) == pytest.approx(192, abs=processes)
    for number, ingress in enumerate(ingresses):
        ingress.update_others([*loads[:number], *loads[number + 1 :]], 1.0)
        assert ingress.ask(1.1, by=BEA).refusal is None


def test_before_anything_is_known_those_who_are_refused_come_back_one_after_the_other() -> None:
    ingress = AdmissionControl((Stage.BASE,), AdmissionLimits(open_requests=1))
    ingress.begin_job(ADA)
    callers = [Caller(f"caller {number}") for number in range(50)]
    verdicts = [ingress.judge(caller, [], 0.0, None, CAPACITY, 0.0) for caller in callers]
    assert {verdict.refusal for verdict in verdicts} == {Refusal.OPEN_REQUESTS}
    waits = [verdict.retry_after for verdict in verdicts]
    assert waits == sorted(waits)
    assert waits[-1] - waits[0] in (54, 55)  # a second each is assumed, at nine tenths of the rate


def test_a_request_refused_before_its_job_is_known_counts_as_one_of_the_open_jobs() -> None:
    ingress = Ingress()
    ingress.admit_all(5, now=0.0)
    for number in range(5):  # whose jobs have two images: one of a second and one of three
        ingress.owed.put(f"long {number}", OwedImage(ADA, 0.0, {Stage.BASE: 3.0}))
    waits = [ingress.send_away(Caller(f"b {number}"), CAPACITY, 0.0) for number in range(4)]
    assert waits == [ceil(4 + number * 4 / 0.9) for number in range(4)]


def test_one_caller_s_jobs_leave_room_for_others_on_every_process() -> None:
    """Four images a second are made, so that nobody waits long, and Ada's wait is a minute."""
    first, second = Ingress(AdmissionLimits()), Ingress(AdmissionLimits())
    while first.ask(0.0, by=ADA).refusal is None:
        pass
    assert first.jobs == 192
    second.update_others([first.load(0.0)], 0.0)
    assert second.ask(0.0, by=ADA).refusal is Refusal.OPEN_REQUESTS
    refusals = [second.ask(0.0, by=BEA).refusal for _ in range(17)]  # of 32 places, half each
    assert refusals == [*[None] * 16, Refusal.OPEN_REQUESTS]
    assert second.ask(0.0, by=Caller("cy")).refusal is None
    for _ in range(60):
        first.end()
    second.update_others([first.load(0.0)], 0.0)
    assert second.ask(0.0, by=BEA).refusal is None  # three quarters are anybody's


def test_a_job_that_is_not_known_yet_is_sent_away_like_any_other() -> None:
    """Ada has an image of her own that goes before, and so do as many others as there may be."""
    ingress = Ingress(AdmissionLimits(queue_seconds=5.0, open_requests=1000))
    assert ingress.ask(0.0, by=ADA).refusal is None
    ingress.admit_all(50, now=0.0)
    before = ingress.load(5.0).sent_away.get(ADA, 0.0)
    assert ingress.preview(ADA, (), None, CAPACITY, 5.0).refusal is None
    assert ingress.preview(ADA, (Stage.BASE,), 4.0, CAPACITY, 5.0).refusal is None  # it is late
    assert ingress.load(5.0).sent_away.get(ADA, 0.0) == before
    assert ingress.preview(ADA, (Stage.BASE,), None, CAPACITY, 5.0).refusal is None
    refused = ingress.preview(ADA, (Stage.BASE,), 11.0, CAPACITY, 5.0)
    assert refused.refusal is Refusal.DEADLINE
    assert refused.retry_after > 0
    assert ingress.load(5.0).sent_away[ADA] > before
    assert ingress.ask(5.0, deadline=11.0, by=ADA).refusal is Refusal.DEADLINE


def test_an_accepted_image_takes_longer_from_its_turn_on_the_more_there_are() -> None:
    control = AdmissionControl([Stage.BASE], AdmissionLimits())
    work = StageWork(Stage.BASE, 1, amortized=4.0, isolated=4.0, batched=16.0)
    capacities = {Stage.BASE: StageCapacity(replicas=2, batch_images=4)}
    seconds = []
    for number in range(9):
        control.owed.put(str(number), OwedImage(NO_CALLER, 0.0, {Stage.BASE: 4.0}))
        seconds.append(control.seconds_from_turn([work], capacities, now=0.0))
    assert seconds == [4, 4, 8, 8, 12, 12, 16, 16, 16]


def test_an_accepted_image_is_expected_to_wait_for_all_but_itself() -> None:
    ingress = Ingress()
    ingress.admit_all(1, now=0.0)
    alone = ingress.expected_seconds(Caller("x"), [IMAGE], 4.0, CAPACITY, 0.0)
    assert alone[0] == 0.0
    ingress.admit_all(9, now=0.0)
    ada = Caller("ada")
    ingress.owed.put("own", OwedImage(ada, 4.0, {Stage.BASE: 1.0}))
    wait, done = ingress.expected_seconds(ada, [IMAGE], 4.0, CAPACITY, 0.0)
    assert wait == pytest.approx(10.0)  # of equal shares it has its turn with the others
    assert done > wait
