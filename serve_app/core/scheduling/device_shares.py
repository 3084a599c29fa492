"""`DeviceShares`: how much of one device each caller has had, in turns and in places of a step.

*Turns* are shared by their seconds: the caller whose turn it is pays for all of it, since nobody
else chose what ran. The *places* of a step are shared by GPU time, which is a step's seconds by
rows, so a caller with one image has a place in each batch beside those of a caller with a hundred.
What the callers before it can't use, the next one gets.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from serve_app.core.caller import Caller
from serve_app.core.diffusion.sample import Sample
from serve_app.core.scheduling.fair_shares import FairShares
from serve_app.core.scheduling.work import Plan, WorkKind, share_by_rows


class DeviceShares:
    """The shares of one replica's callers. Its scheduler is the only writer."""

    def __init__(self) -> None:
        self._turns, self._places = FairShares(), FairShares()
        self._step_seconds, self._row_seconds = 0.0, 1.0  # of the last step

    def __len__(self) -> int:
        """Return the number of callers of whom anything is kept."""
        return max(len(self._turns), len(self._places))

    def enter(self, caller: Caller) -> None:
        """Count one more sample of a caller."""
        self._turns.enter(caller)
        self._places.enter(caller)

    def leave(self, caller: Caller) -> None:
        """Count one sample less."""
        self._turns.leave(caller)
        self._places.leave(caller)

    def turn_time(self, caller: Caller) -> float:
        """Return the virtual time by which turns are given."""
        return self._turns.time(caller)

    def place_time(self, caller: Caller) -> float:
        """Return the virtual time by which places of a step are given."""
        return self._places.time(caller)

    def place_seconds(self, sample: Sample[Any]) -> float:
        """Return the GPU time that the sample's next step is expected to take."""
        return sample.rows * self._row_seconds

    def limit(self, stepping: Caller) -> float:
        """Return the turn time beyond which work other than steps waits for this caller's step.

        It is beyond by more than a step: a caller with ever new models can't keep the device from
        the others by loading them.
        """
        return self._turns.time(stepping) + self._step_seconds

    def charge(
        self, plan: Plan[Any], seconds: float, stepping: Callable[[Sample[Any]], int]
    ) -> None:
        """Charge the callers of a plan with the seconds that its turn took.

        `stepping` is how many samples step that have a sample's batch key and caller. A load is
        charged to all who waited for it. So whoever brings in a model has the others served for as
        long before its next load.
        """
        samples = plan.samples
        shares = share_by_rows([sample.rows for sample in samples], seconds)
        by_caller = [(sample.caller, share) for sample, share in zip(samples, shares, strict=True)]
        self._places.serve(by_caller)
        if plan.work is not WorkKind.STEP:
            self._turns.serve(by_caller)
            return
        self._turns.serve([(samples[0].caller, seconds)])
        self._step_seconds = seconds
        self._row_seconds = seconds / sum(sample.rows for sample in samples)
        places = Counter(sample.caller for sample in samples)
        of_caller = {sample.caller: sample for sample in samples}
        self._forfeit_unusable(
            {caller: stepping(sample) > places[caller] for caller, sample in of_caller.items()}
        )

    def correct(self, plan: Plan[Any], charged: float, seconds: float) -> None:
        """Charge the callers of a step with what it took, who were `charged` other seconds.

        It may have ended after later steps were planned, and its samples wait for others since.
        """
        rows = [sample.rows for sample in plan.samples]
        for sample, share in zip(plan.samples, share_by_rows(rows, seconds - charged), strict=True):
            self._places.correct(sample.caller, share)
        self._turns.correct(plan.samples[0].caller, seconds - charged)
        self._step_seconds, self._row_seconds = seconds, seconds / sum(rows)

    def _forfeit_unusable(self, wants_more: dict[Caller, bool]) -> None:
        """Let nobody save up places of a step that it had no more samples for."""
        wanting = [self._places.time(caller) for caller, more in wants_more.items() if more]
        if wanting:
            for caller, more in wants_more.items():
                if not more:
                    self._places.raise_to(caller, min(wanting))
