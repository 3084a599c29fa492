"""Replicas that hang or are stopped, and images that kill theirs."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from serve_app.core.capacity.overdue import silence_limit
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Answer, Call, Load, steady
from tests.e2e.chaos.measure import sampled, together
from tests.e2e.chaos.processes import stopped
from tests.e2e.chaos.report import report
from tests.e2e.chaos.service import ChaosService
from tests.e2e.chaos.verdict import Kind, count, judge, tally
from tests.support.waiting import until

GOOD = [image_body(seed, steps=60) for seed in range(100, 108)]
RATE = 2.0  # newcomers a second
LEFT_AFTER = silence_limit(0.0)  # seconds: a step is far shorter than what counts as silence
# Images of one replica, which run alone at first on the next one, one after the other.
ALONE = 8


@contextmanager
def seen(find: Callable[[], list[psutil.Process]]) -> Iterator[set[int]]:
    """Collect the process ids of replicas while the block runs: read it after the block."""
    pids, done = {process.pid for process in find()}, threading.Event()

    def collect() -> None:
        while not done.wait(0.2):
            pids.update(process.pid for process in find())

    thread = threading.Thread(target=collect)
    thread.start()
    yield pids
    done.set()
    thread.join()


def base_replicas(chaos: ChaosService) -> list[psutil.Process]:
    return chaos.processes.replicas("BaseGenerator")


def send_steadily(chaos: ChaosService, seeds: range) -> list[Answer]:
    with Load(chaos.address) as load:
        load.send(steady([image_body(seed, steps=60) for seed in seeds], RATE))
        return load.answers(120)


def reasons(health: list[tuple[float, Any]]) -> list[str]:
    """Return what /health said while it was `degraded`, without the figures in it."""
    texts = (body["reason"] for _, body in health if body and body["status"] == "degraded")
    return sorted({re.sub(r"\d+(\.\d+)?", "N", reason) for reason in texts})


def slowest(answers: list[Answer]) -> float:
    return max(answer.seconds for answer in answers)


@pytest.mark.long
def test_an_image_that_kills_its_replica_costs_two_and_convicts_no_other(
    chaos: ChaosService,
) -> None:
    bad = image_body(1, steps=60, prompt="fault:kill@6")
    with seen(lambda: base_replicas(chaos)) as pids, Load(chaos.address) as load:
        load.send([Call(body) for body in (*GOOD[:4], bad, *GOOD[4:])])
        answers = load.answers(120)
        chaos.wait_whole()
    report(
        "an image that kills its replica at step 6, beside 8 others",
        f"{tally(answers)}; {len(pids) - 2} base replicas killed",
        "two at most; 422, and no other is blamed",
    )
    assert count(answers) == {"made": 8, "422 IMAGE_KILLS_REPLICA": 1}
    assert len(pids) == 4  # two at first, two that came in place of the dead
    (convicted,) = [answer for answer in answers if judge(answer).kind is not Kind.MADE]
    assert convicted.headers["x-should-retry"] == "false"
    again = chaos.answer(Call(bad))
    assert str(judge(again)) == "422 IMAGE_KILLS_REPLICA"
    chaos.wait_idle()


@pytest.mark.long
def test_a_replica_whose_step_never_returns_is_replaced_and_its_images_are_made(
    chaos: ChaosService,
) -> None:
    calm = slowest(together(chaos, [*GOOD, image_body(2, steps=60)]))  # and steps are measured
    hung = image_body(2, steps=60, prompt="fault:hang@12*1")
    with (
        seen(lambda: base_replicas(chaos)) as pids,
        sampled(chaos.health) as health,
        Load(chaos.address) as load,
    ):
        began = time.monotonic()
        load.send([Call(body) for body in (hung, *GOOD)])
        answers = load.answers(120)
        until(lambda: len(pids) == 3, 60)
        replaced = time.monotonic() - began
        chaos.wait_whole()
    report(
        "a step that never returns, beside 8 other images",
        f"{tally(answers)}, the slowest in {slowest(answers):.1f} s ({calm:.1f} s undisturbed); "
        f"replaced after {replaced:.1f} s; /health meanwhile degraded: {reasons(health)}",
        f"all made within {LEFT_AFTER:.0f} s and {ALONE} times the undisturbed; the replica is "
        "replaced, and /health says so meanwhile",
    )
    assert count(answers) == {"made": 9}
    assert slowest(answers) <= LEFT_AFTER + ALONE * calm
    assert any("hang" in reason for reason in reasons(health))
    assert chaos.health()["status"] == "ready"
    chaos.wait_idle()


@pytest.mark.long
def test_a_stopped_replica_s_images_continue_elsewhere_and_its_own_are_cancelled(
    chaos: ChaosService,
) -> None:
    calm = slowest(send_steadily(chaos, range(180, 200)))
    replica = base_replicas(chaos)[0]
    with Load(chaos.address) as load:
        load.send(steady([image_body(seed, steps=60) for seed in range(200, 320)], RATE))
        time.sleep(5)
        with sampled(chaos.health) as health, stopped(replica):
            time.sleep(60)
        answers = load.answers(120)
    report(
        f"SIGSTOP of a base replica for 60 s, {RATE:.0f} images a second",
        f"{tally(answers)}, the slowest in {slowest(answers):.1f} s ({calm:.1f} s undisturbed); "
        f"/health meanwhile degraded: {reasons(health)}",
        f"all made within {LEFT_AFTER:.0f} s and {ALONE} times the undisturbed",
    )
    assert count(answers) == {"made": 120}
    assert slowest(answers) <= LEFT_AFTER + ALONE * calm
    chaos.wait_idle()
    chaos.wait_whole()
