"""The engine: turns plans into steps on the one thread that owns the device.

No Ray, no HTTP, no event loop. Other threads send commands; listeners are called on the engine's
thread and must not block. `turn` is synchronous, so that a test can be the engine's thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch

from serve_app.core.capacity.overdue import CurrentTurn
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.errors import AuraError, EngineFault, NumericFault, ReplicaLost, ReplicaUnwell
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.work import PendingWork, Plan, WorkKind
from serve_app.core.service.events import EngineStats
from serve_app.runtime.command_queue import CommandQueue
from serve_app.runtime.engine_events import Failed, Listener, OnStep, StepRecord, notify
from serve_app.runtime.engine_state import EngineState
from serve_app.runtime.fault_diagnosis import FaultDiagnosis
from serve_app.runtime.live_sample import DeviceSample, HostSample
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.vae import latents_not_finite
from serve_app.runtime.turn import LaunchedTurn, current_turn, run_turn

logger = logging.getLogger("aura.engine")

_QUARANTINE_NOTICE = 0.05  # seconds in which the news leaves the process, which may end


class Engine:
    """The samples of one replica, stepped together.

    Its thread calls `on_step` after each step, and `on_unwell` with the reason, to end the process.
    A GPU works while the host prepares the next step: see `Device.works_ahead`.
    """

    def __init__(
        self,
        models: ModelCache,
        *,
        snapshot_every: int,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        on_step: OnStep | None = None,
        on_unwell: Callable[[str], None] | None = None,
    ) -> None:
        self.models = models
        self._clock, self._pause, self._on_step = clock, pause, on_step
        self._commands = CommandQueue()
        # Held while the state changes, never while the device works: other threads read it.
        self._lock = threading.RLock()
        self._state = EngineState(models, snapshot_every)
        self.current_turn: CurrentTurn | None = None  # None: idle. Any thread may read it
        self._launched: LaunchedTurn | None = None  # a settled step that was not waited for
        self._free_at = 0.0  # when the last turn ended, or the wait for a command
        self._records: list[StepRecord] = []  # of the present turn, for `on_step`
        self._diagnosis = FaultDiagnosis(clock, pause, on_unwell)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def memory_plans(self) -> Mapping[ModelKey, MemoryPlan]:
        """The memory plan of each model, as of the last load. Any thread may read this."""
        return self._state.memory_plans

    def start(self) -> None:
        """Start the engine's thread, which works until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; every remaining listener gets a last snapshot and `ReplicaLost`."""
        self._commands.put(self._evict_all_and_close)
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._run_commands(wait=False)

    def submit(self, sample: HostSample, segment: StageSegment, listener: Listener) -> None:
        """Step the sample to the end of its segment. Any thread may call this.

        A sample with the id of an earlier one replaces it, whose listener gets `TakenOver`.
        """
        self._commands.put(lambda: self._add(sample, segment, listener))

    def cancel(self, id: str, listener: Listener) -> None:
        """Drop the listener's sample before the next plan; the listener gets no more events.

        Nothing happens when the sample has ended, or was sent again with another listener.
        """
        self._commands.put(lambda: self._state.drop(id, listener))

    def watch(self, id: str, *, watched: bool) -> None:
        """Make previews of a sample and report its progress more often, or no longer.

        Nothing happens when the sample has ended. Any thread may call this.
        """
        self._commands.put(lambda: self._state.subscriptions.watch(id, watched=watched))

    def stats(self) -> EngineStats:
        """Return what the engine has done so far. Any thread may call this."""
        with self._lock:
            return self._state.stats()

    def pending(self) -> tuple[PendingWork[torch.Tensor], ...]:
        """Return the work left of all samples, for a forecast. Any thread may call this."""
        with self._lock:
            return self._state.scheduler.pending()

    def check(self) -> None:
        """Return if the engine is well; raise `EngineFault` if it can't work any more."""
        if self._thread.ident is not None and not self._thread.is_alive():
            raise EngineFault("the engine thread has ended")
        self._diagnosis.check()
        if turn := self.current_turn:
            turn.check(self._clock())

    def is_silent(self) -> bool:
        """Return whether images should not wait for the current turn. Any thread may call this."""
        turn = self.current_turn
        return turn is not None and turn.is_silent(self._clock())

    def turn(self, *, wait: bool = False) -> bool:
        """Take commands; make, run and settle one plan. Return whether there was one.

        With `wait`, an engine without samples blocks until a command comes.
        """
        self._run_commands(wait=wait)
        plan = self._next_plan()
        if plan is None:
            return False
        fault: AuraError = latents_not_finite()
        try:
            faulty = self._run_plan(plan)
        except Exception as error:  # whatever a turn fails with, only its own samples may suffer
            with self._lock:
                faulty, fault = self._state.fail(plan, error)
        self._end_turn(faulty, fault)
        return True

    def _run(self) -> None:
        self.models.device.claim_thread()
        while not self._closing:
            self.turn(wait=True)

    def _run_commands(self, *, wait: bool) -> None:
        """Run the commands there are, with no step on its way whose samples they might change."""
        idle = not len(self._state.scheduler)
        if idle:
            self.current_turn = None
        commands = self._commands.take(wait=wait and idle)
        if commands:
            self._land()
        for command in commands:
            with self._lock:
                command()
        if idle:
            self._free_at = self._clock()

    def _next_plan(self) -> Plan[torch.Tensor] | None:
        """Return the next plan; only a usual step follows one that was not waited for."""
        while True:
            with self._lock:
                self._state.scheduler.admit_ready()
                plan = self._state.scheduler.plan()
            if self._launched is None or (plan is not None and self._is_usual_step(plan)):
                return plan
            self._land()

    def _add(self, sample: HostSample, segment: StageSegment, listener: Listener) -> None:
        if unwell := self._diagnosis.unwell:
            notify(listener, Failed(unwell))
        else:
            self._state.add(sample, segment, listener, self._clock())

    def _evict_all_and_close(self) -> None:
        self._evict_all(ReplicaLost("the replica is closing"))
        self._closing = True

    def _evict_all(self, error: AuraError) -> None:
        self._state.evict_all(error, with_snapshots=not self._diagnosis.unwell)

    def _run_plan(self, plan: Plan[torch.Tensor]) -> list[DeviceSample]:
        """Run a plan, charge for it and settle it; return samples whose latents are not finite.

        A step is waited for when the next one is on its way, or at once if anything else needs it.
        """
        now = self._clock()
        next_turn = current_turn(self.models, plan, now, self._state.costs)
        if self._launched is None:
            self.current_turn = next_turn
        if self._state.subscriptions.notify_turn(plan, now):
            self._pause(_QUARANTINE_NOTICE)
        is_ahead = self._launched is not None
        turn = self._launch(plan, self._state.subscriptions.take_previews(plan, now))
        if turn is None:
            return []
        if is_ahead:
            self.current_turn = replace(next_turn, began=self._free_at)
        with self._lock:
            if self._may_work_ahead(turn):
                self._launched = self._state.settle_ahead(turn)
                return []
        try:
            _wait_for(turn)
        except Exception:
            self._charge(replace(turn, is_usual=False))
            raise
        self._charge(turn)
        with self._lock:
            faulty = self._state.settle(turn, self._clock())
        if plan.work is WorkKind.STEP:
            self._diagnosis.record_step()
        return faulty

    def _launch(self, plan: Plan[torch.Tensor], previewed: Collection[str]) -> LaunchedTurn | None:
        """Run a plan; of a step, only until the device has it to do. Charge for it if it fails.

        Return None if the step before has failed, with whose results it would have begun. A device
        may say so only when it is given this one.
        """
        try:
            turn = run_turn(self.models, plan, previewed)
        except Exception:
            if not self._land():
                return None
            self._charge(LaunchedTurn(plan, [], plan.lanes, is_usual=False))
            raise
        finally:
            if plan.work in (WorkKind.LOAD, WorkKind.ATTACH):
                with self._lock:
                    self._state.update_models()
        return turn if self._land() else None

    def _land(self) -> bool:
        """Wait for the step that was launched last, if it was not waited for, and charge for it.

        Return whether the device has done it. If not, its samples take it again, each alone.
        """
        turn, self._launched = self._launched, None
        if turn is None:
            return True
        try:
            _wait_for(turn)
        except Exception:
            logger.exception("a step failed on the device")
            self._charge(replace(turn, is_usual=False))
            with self._lock:
                self._state.take_back(turn)
            return False
        self._charge(turn)
        self._report_steps()
        with self._lock:
            self._state.subscriptions.keep_resumable(turn.samples)
            self._state.subscriptions.send_previews(turn.previews)
        self._diagnosis.record_step()
        return True

    def _is_usual_step(self, plan: Plan[torch.Tensor]) -> bool:
        """Return whether a plan is a step that takes as long as always.

        A suspect's first turn alone is none: it conditions the prompt.
        """
        if plan.work is not WorkKind.STEP:
            return False
        return self.models[plan.samples[0].model_key].knows_lanes(plan.samples)

    def _may_work_ahead(self, turn: LaunchedTurn) -> bool:
        """Return whether the next step may be planned before the device has done this turn."""
        if turn.plan.work is not WorkKind.STEP or not self.models.device.works_ahead:
            return False
        return self._state.can_be_followed(turn, self._clock())

    def _charge(self, turn: LaunchedTurn) -> None:
        """Charge the samples of a turn with the time since the last turn ended."""
        began, self._free_at = self._free_at, self._clock()
        seconds = self._free_at - began
        with self._lock:
            self._state.charge(turn, seconds)
        if turn.plan.work is WorkKind.STEP:
            self._records.append(StepRecord.of(turn.plan, turn.lanes, began, seconds))

    def _report_steps(self) -> None:
        records, self._records = self._records, []
        if self._on_step is not None:
            for record in records:
                self._on_step(record)

    def _end_turn(self, faulty: Sequence[DeviceSample], fault: AuraError) -> None:
        """Report the steps that are done, and end the samples that failed."""
        self._report_steps()
        for sample in faulty:
            self._end(sample, fault)
        self._diagnosis.end_if_unwell()

    def _end(self, sample: DeviceSample, fault: AuraError) -> None:
        """End a sample that failed, and all others if the replica is to blame."""
        self.current_turn = CurrentTurn.unknown(self._clock())
        error = self._diagnosis.diagnose(self.models, sample, fault)
        self._free_at = self._clock()  # no sample is charged for the examination
        with self._lock:
            self._state.end(sample.id, error, is_numeric=isinstance(fault, NumericFault))
            if isinstance(error, ReplicaUnwell):
                self._evict_all(error)


def _wait_for(turn: LaunchedTurn) -> None:
    """Wait until the device has done a turn; raise what it failed with."""
    if turn.event is not None:
        turn.event.synchronize()
