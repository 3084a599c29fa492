"""All systems under the same loads, in turns: round after round, in another order each time."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from serve_app.bench.local_ray import local_ray
from serve_app.bench.serve.load import LoadResult, closed_loop, open_loop, poisson_times
from serve_app.bench.serve.lora_files import write_loras
from serve_app.bench.serve.measurement import Measurement
from serve_app.bench.serve.picture_check import PictureCheck
from serve_app.bench.serve.results import CLOSED, OPEN, OVERLOAD, Plan, Results
from serve_app.bench.serve.systems.on_ray import FAST, SERVE_BATCH, STRICT
from serve_app.bench.serve.systems.programs import every_system
from serve_app.bench.serve.systems.setup import Setup
from serve_app.bench.serve.systems.system import Client
from serve_app.core.errors import OperatorError

OPEN_SHARE = 0.85  # of the capacity of the slowest of ours and `@serve.batch`
OVERLOAD_FACTOR = 5.0  # of the same capacity
console = Console(highlight=False)


def compare(plan: Plan, only: Sequence[str] = ()) -> Results:
    """Measure the systems whose names contain one of the words in `only`, or all of them.

    All of them run all the time, and one is measured at a time: idle ones cost each the same.
    """
    results, names = Results(plan), [word.lower() for word in only] or [""]
    with (
        local_ray() as (port, ray_folder),
        tempfile.TemporaryDirectory() as folder,
        ExitStack() as running,
    ):
        count = sum(name is not None for name in plan.workload.loras)
        loras = write_loras(Path(folder), count)
        setup = Setup(ray_folder, plan.batch, plan.threads, loras)
        comparison = _Comparison(results)
        for system in every_system(setup, port):
            if not any(name in system.name.lower() for name in names):
                continue
            stop = running.enter_context(ExitStack())
            try:
                with console.status(f"starting {system.name}"):
                    comparison.add(system.name, stop.enter_context(system.start()), stop)
            except OperatorError as error:
                results.skipped[system.name] = str(error)
                console.print(f"[yellow]{system.name} is left out: {error}[/]")
            else:
                results.notes[system.name] = system.note
        comparison.run()
    return results


class _Comparison:
    """The systems that run, and the loads that they get."""

    def __init__(self, results: Results) -> None:
        self._results, self._plan = results, results.plan
        self._clients: dict[str, Client] = {}
        self._stops: dict[str, ExitStack] = {}
        self._pictures = PictureCheck()
        self._round: dict[str, LoadResult] = {}  # that is going on, by system

    def add(self, name: str, client: Client, stop: ExitStack) -> None:
        """Add a system that runs; `stop` ends it."""
        self._clients[name], self._stops[name] = client, stop

    def run(self) -> None:
        """Measure all systems under all loads."""
        rounds = range(self._plan.rounds)
        self._warm_up()
        for number in rounds:
            for name in self._order(self._clients, number):
                self._closed(name, number)
            self._settle(CLOSED)
        capacity = self._capacity()
        self._results.rate = OPEN_SHARE * capacity
        self._results.overload_rate = OVERLOAD_FACTOR * capacity
        for number in rounds:
            for name in self._order(self._results.served, number):
                self._open(name, number)
            self._settle(OPEN)
        for name in self._results.served:
            self._overload(name)
            self._stops[name].close()  # what it still works at must not disturb the next one
        self._settle(OVERLOAD)

    def _warm_up(self) -> None:
        """Let each system make every kind of image, in batches too."""
        requests = self._plan.workload.draw(2 * self._plan.workload.kinds, self._plan.seed - 1)
        for name, client in self._clients.items():
            with console.status(f"warming up {name}"):
                closed_loop(client.send, requests, len(requests))

    @staticmethod
    def _order(names: Sequence[str] | dict[str, Client], number: int) -> list[str]:
        """Return the systems in the order of a round: each round begins with another one."""
        listed = list(names)
        first = number % len(listed)
        return listed[first:] + listed[:first]

    def _closed(self, name: str, number: int) -> None:
        requests = self._plan.workload.draw(self._plan.requests, self._plan.seed + number)
        result = closed_loop(self._clients[name].send, requests, self._plan.clients)
        self._note(CLOSED, name, result)

    def _open(self, name: str, number: int) -> None:
        plan, rate = self._plan, self._results.rate
        requests = plan.workload.draw(plan.requests, plan.seed + number)
        times = poisson_times(len(requests), rate, plan.seed + number)
        result = open_loop(self._clients[name].send, requests, times)
        self._note(OPEN, name, result)

    def _overload(self, name: str) -> None:
        plan, rate = self._plan, self._results.overload_rate
        count = round(rate * 2 * plan.deadline)
        requests = plan.workload.draw(count, plan.seed + plan.rounds)
        times = poisson_times(count, rate, plan.seed)
        result = open_loop(self._clients[name].send, requests, times, plan.deadline)
        self._note(OVERLOAD, name, result)

    def _note(self, load: str, name: str, result: LoadResult) -> None:
        """Keep a result of this round; nothing is shown while a load runs, which it would slow."""
        self._round[name] = result
        pictures = sum(answer.is_ok for answer in result.answers)
        console.print(
            f"[dim]{load}, {name}: {pictures} of {len(result.answers)} in {result.seconds:.1f} s[/]"
        )

    def _settle(self, load: str) -> None:
        """Judge the pictures of a round by those of strict mode, and record its measurements."""
        if STRICT in self._round:
            self._pictures.learn(self._round[STRICT])
        for name, result in self._round.items():
            self._results.add(load, name, Measurement.of(self._pictures.judge(result)))
        self._round.clear()

    def _capacity(self) -> float:
        """Return the pictures a second of the slowest of ours and `@serve.batch`."""
        measured = self._results.systems(CLOSED)
        compared = [name for name in (STRICT, FAST, SERVE_BATCH) if name in measured] or measured
        return min(
            self._results.median(CLOSED, name, lambda load: load.throughput) for name in compared
        )
