"""Replicas that hang or are stopped, and images that kill theirs."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from serve_app.core.capacity.overdue import silence_limit
from tests.e2e.chaos.bodies import image_body
from tests.e2e.chaos.load import Answer, Call, Load, steady
from tests.e2e.chaos.processes import stopped
from tests.e2e.chaos.service import ChaosService
from tests.e2e.chaos.verdict import Kind, count, judge
from tests.support.waiting import until

GOOD = [image_body(seed, steps=60) for seed in range(100, 108)]
RATE = 2.0  # newcomers a second


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
    chaos.answer(Call(GOOD[0]))  # so that a step is measured
    hung = image_body(2, steps=60, prompt="fault:hang@12*1")
    with seen(lambda: base_replicas(chaos)) as pids, Load(chaos.address) as load:
        began = time.monotonic()
        load.send([Call(body) for body in (hung, *GOOD)])
        answers = load.answers(120)
        print(f"all made after {max(answer.ended for answer in answers) - began:.1f} s")
        until(lambda: len(pids) == 3, 60)
        print(f"replaced after {time.monotonic() - began:.1f} s")
        chaos.wait_whole()
    assert count(answers) == {"made": 9}
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
        with stopped(replica):
            time.sleep(60)
        answers = load.answers(120)
    left_after = silence_limit(0.0)  # seconds: a step is far shorter than what counts as silence
    print(f"the slowest took {slowest(answers):.1f} s, {calm:.1f} s undisturbed")
    assert count(answers) == {"made": 120}
    # 8: the images of the stopped replica run alone at first, one after the other
    assert slowest(answers) <= left_after + 8 * calm
    chaos.wait_idle()
    chaos.wait_whole()
