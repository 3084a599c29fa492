"""The watchdog of a replica's process, ticked by hand."""

import asyncio
import subprocess
import sys

from serve_app.core.capacity.overdue import CurrentTurn, TurnLimits
from serve_app.deployments.watchdog import EXIT_STATUS, Watchdog

TURN = CurrentTurn(0.0, TurnLimits(10.0, 20.0))


class Watched:
    """An engine and a process that a watchdog may end."""

    def __init__(self) -> None:
        self.turn: CurrentTurn | None = None
        self.ends: list[str] = []
        self.watchdog = Watchdog(lambda: self.turn, self.ends.append)

    def tick(self, times: int, seconds: float = 1.0) -> None:
        for _ in range(times):
            self.watchdog.tick(seconds)


def test_a_turn_that_serve_has_not_ended_half_a_minute_after_it_is_overdue_ends_the_process() -> (
    None
):
    watched = Watched()
    watched.turn = TURN
    watched.tick(51)
    assert watched.ends == []
    watched.tick(1)
    assert watched.ends == ["a turn has taken 51 s"]


def test_every_turn_has_its_own_time_and_idleness_has_none() -> None:
    watched = Watched()
    for _ in range(3):
        watched.turn = CurrentTurn(0.0, TURN.limits)
        watched.tick(40)
        watched.turn = None
        watched.tick(400)
    assert watched.ends == []


def test_a_process_that_was_stopped_for_a_minute_is_not_ended_for_it() -> None:
    watched = Watched()
    watched.turn = TURN
    watched.tick(2, seconds=60.0)
    assert watched.ends == []


async def test_an_event_loop_that_is_held_up_for_a_minute_ends_the_process() -> None:
    watched = Watched()
    watched.watchdog.watch_loop(asyncio.get_running_loop())
    for _ in range(3):
        watched.tick(50)
        await asyncio.sleep(0)
    assert watched.ends == []
    watched.tick(61)
    assert watched.ends == ["the event loop has been held up for 61 s"]


def test_a_closed_event_loop_is_watched_no_more() -> None:
    watched = Watched()
    loop = asyncio.new_event_loop()
    watched.watchdog.watch_loop(loop)
    loop.close()
    watched.tick(100)
    assert watched.ends == []


def test_a_process_whose_main_thread_hangs_ends_with_the_stated_status_and_a_line() -> None:
    code = (
        "import time\n"
        "from serve_app.core.capacity.overdue import CurrentTurn, TurnLimits\n"
        "from serve_app.deployments import watchdog\n"
        "turn = CurrentTurn(0.0, TurnLimits(1e-3, 1e-3))\n"
        "dog = watchdog.Watchdog(lambda: turn)\n"
        "dog.tick(1.0)\n"
        "dog._turn_seconds = 60.0\n"
        "dog.start()\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == EXIT_STATUS
    assert "this replica ends its own process: a turn has taken" in done.stderr


def test_a_replica_on_whose_device_nothing_runs_any_more_ends_its_process() -> None:
    code = (
        "import asyncio\n"
        "from serve_app.core.diffusion.spec import ImageSpec, Stage\n"
        "from serve_app.core.service.metrics import InMemoryMeter\n"
        "from serve_app.simulator.gpu_speed import GpuSpeed\n"
        "from serve_app.testing.sleeping_networks import NOISE\n"
        "from serve_app.testing.sleeping_stage import SleepingStage, stage_config\n"
        "from tests.support.engine_runs import sample_of, whole\n"
        "import pathlib\n"
        "config, speed = stage_config(Stage.BASE, images=4), GpuSpeed().scaled(1e-6)\n"
        "stage = SleepingStage(config, speed, InMemoryMeter, pathlib.Path('unused'))\n"
        "text, size = 'fault:break@2', {'width': 64, 'height': 64}\n"
        "spec = ImageSpec(prompt=text, seed=1, steps=9, guidance=5, **size)\n"
        "sample = sample_of(spec, noise=NOISE)\n"
        "async def advance():\n"
        "    async for event in stage.advance(sample, whole(sample)): pass\n"
        "asyncio.run(advance())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == EXIT_STATUS
    assert "ends its own process: the self-test fails: it could not run" in done.stderr


def test_a_process_ends_although_a_thread_that_hangs_has_the_lock_of_its_log() -> None:
    code = (
        "import logging, sys, threading, time\n"
        "from serve_app.deployments import watchdog\n"
        "logging.basicConfig()\n"
        "logging.getLogger().handlers[0].acquire()\n"
        "threading.Thread(target=watchdog.end_process, args=('a test',)).start()\n"
        "time.sleep(20)\n"
        "import os; os._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=50)
    assert done.returncode == EXIT_STATUS
