"""`TurnCounts`: what an engine has done so far, counted. The engine's turn is the only writer."""

from dataclasses import dataclass
from typing import Any

from serve_app.core.scheduling.work import Plan, WorkKind


@dataclass(slots=True)
class TurnCounts:
    """The counters of `EngineStats`."""

    turns: int = 0
    steps: int = 0
    finished: int = 0
    cancelled: int = 0
    numeric_faults: int = 0

    def record(self, plan: Plan[Any]) -> None:
        """Count a plan that was run."""
        if plan.work is WorkKind.STEP:
            self.turns += 1
            self.steps += len(plan.samples)
