"""`Results`: what was measured of each system under each load, a measurement a round."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from serve_app.bench.serve.measurement import Measurement
from serve_app.bench.serve.systems.engine_alone import ENGINE
from serve_app.bench.serve.workload import Workload

CLOSED, OPEN, OVERLOAD = "closed", "open", "overload"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    requests: int  # of each load
    clients: int  # of the closed loop
    deadline: float  # seconds, under overload
    batch: int = 4  # images that may run together, of every system
    threads: int = 1  # CPU threads of every system
    workload: Workload = field(default_factory=Workload)
    seed: int = 1


@dataclass(slots=True)
class Results:
    """What was measured of each system under each load, a measurement a round."""

    plan: Plan
    notes: dict[str, str] = field(default_factory=dict)  # how a system is set up
    skipped: dict[str, str] = field(default_factory=dict)  # why a system was left out
    rate: float = 0.0  # requests per second of the open loop
    overload_rate: float = 0.0
    by_load: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)

    def add(self, load: str, system: str, measurement: Measurement) -> None:
        """Add a system's measurement of one round."""
        self.by_load.setdefault(load, {}).setdefault(system, []).append(measurement)

    def systems(self, load: str) -> list[str]:
        """Return the systems that were measured under a load, in the order of their list."""
        return [name for name in self.notes if name in self.by_load.get(load, {})]

    @property
    def served(self) -> list[str]:
        """The systems that are asked over HTTP."""
        return [name for name in self.notes if not name.startswith(ENGINE)]

    def values(self, load: str, system: str, value: Callable[[Measurement], float]) -> list[float]:
        """Return a number of each round."""
        return [value(measurement) for measurement in self.by_load[load][system]]

    def median(self, load: str, system: str, value: Callable[[Measurement], float]) -> float:
        """Return the median of the rounds."""
        return median(self.values(load, system, value))

    def ratios(
        self, load: str, system: str, other: str, value: Callable[[Measurement], float]
    ) -> list[float]:
        """Return a system's number divided by another's, round by round."""
        pairs = zip(self.values(load, system, value), self.values(load, other, value), strict=True)
        return [a / b for a, b in pairs if b]

    def errors(self, load: str, system: str) -> dict[str, int]:
        """Return the errors of all rounds, by kind."""
        counts: dict[str, int] = {}
        for measurement in self.by_load[load][system]:
            for kind, count in measurement.errors.items():
                counts[kind] = counts.get(kind, 0) + count
        return counts

    def to_json(self) -> dict[str, Any]:
        """Return everything that was measured."""
        return {
            "plan": asdict(self.plan),
            "systems": self.notes,
            "skipped": self.skipped,
            "rate": self.rate,
            "overloadRate": self.overload_rate,
            "loads": {
                load: {
                    name: [measurement.to_json() for measurement in measured]
                    for name, measured in by_system.items()
                }
                for load, by_system in self.by_load.items()
            },
        }
