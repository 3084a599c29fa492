"""The engine: turns plans into steps on the one thread that owns the device.

No Ray, no HTTP, no event loop. Other threads send commands; listeners are called on the engine's
thread and must not block. `turn` is synchronous, so that a test can be the engine's thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch

from serve_app.core.capacity.forecast import mean_step_seconds
from serve_app.core.capacity.gpu_time import GpuTime, GpuTimeAccount
from serve_app.core.capacity.overdue import CurrentTurn
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.errors import (
    AuraError,
    CallerError,
    EngineFault,
    NumericFault,
    OutOfMemory,
    ProfileChanged,
    ReplicaLost,
    ReplicaUnwell,
)
from serve_app.core.replica_errors import TakenOver
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import PendingWork, Plan, WorkKind
from serve_app.core.service.events import EngineStats
from serve_app.runtime.command_queue import CommandQueue
from serve_app.runtime.engine_errors import image_too_large, to_domain_error
from serve_app.runtime.engine_events import Failed, Finished, Listener, OnStep, StepRecord, notify
from serve_app.runtime.fault_diagnosis import FaultDiagnosis
from serve_app.runtime.live_sample import DeviceSample, HostSample, finite_copy, to_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.vae import latents_not_finite
from serve_app.runtime.subscriptions import Subscriptions, notify_snapshot, steps_between_snapshots
from serve_app.runtime.turn import TurnOutcome, current_turn, run_turn
from serve_app.runtime.turn_counts import TurnCounts

logger = logging.getLogger("aura.engine")

_QUARANTINE_NOTICE = 0.05  # seconds in which the news leaves the process, which may end


class Engine:
    """The samples of one replica, stepped together.

    Its thread calls `on_step` after each step, and `on_unwell` with the reason, to end the process.
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
        self._scheduler: StepScheduler[torch.Tensor] = StepScheduler(
            models.batch_sizes,
            model_capacity=models.capacity,
            extension_capacity=models.extension_capacity,
        )
        self._snapshot_every = snapshot_every
        self._clock, self._pause, self._on_step = clock, pause, on_step
        self._commands = CommandQueue()
        self._subscriptions = Subscriptions()
        self._account = GpuTimeAccount()
        self._account.set_batch_sizes(models.batch_sizes)
        self._counts = TurnCounts()
        self.memory_plans: Mapping[ModelKey, MemoryPlan] = models.memory_plans  # of the last load
        # Held while the books change, never while the device works: other threads read them.
        self._lock = threading.RLock()
        self.current_turn: CurrentTurn | None = None  # None: idle. Any thread may read it
        self._free_at = 0.0  # when the last turn ended, or the wait for a command
        self._diagnosis = FaultDiagnosis(clock, pause, on_unwell)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread, which works until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; every remaining listener gets a last snapshot and `ReplicaLost`."""
        self._commands.put(self._evict_all_and_close)
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._commands.run(self._lock, wait=False)

    def submit(self, sample: HostSample, segment: StageSegment, listener: Listener) -> None:
        """Step the sample to the end of its segment. Any thread may call this.

        A sample with the id of an earlier one replaces it, whose listener gets `TakenOver`.
        """
        self._commands.put(lambda: self._add(sample, segment, listener))

    def cancel(self, id: str, listener: Listener) -> None:
        """Drop the listener's sample at the next step boundary; the listener gets no more events.

        Nothing happens when the sample has ended, or was sent again with another listener.
        """
        self._commands.put(lambda: self._drop(id, listener))

    def stats(self) -> EngineStats:
        """Return what the engine has done so far. Any thread may call this."""
        with self._lock:
            return EngineStats(
                **asdict(self._counts),
                gpu_seconds=self._account.total_seconds,
                wasted_gpu_seconds=self._account.wasted_seconds,
                seconds_by_caller=self._account.seconds_by_caller,
                costs=self._account.cost_table,
                positions={sample.id: sample.index for sample in self._scheduler.samples()},
                models=tuple(self.memory_plans),
            )

    def pending(self) -> tuple[PendingWork[torch.Tensor], ...]:
        """Return the work left of all samples, for a forecast. Any thread may call this."""
        with self._lock:
            return self._scheduler.pending()

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
        idle = not len(self._scheduler)
        if idle:
            self.current_turn = None
        self._commands.run(self._lock, wait=wait and idle)
        if idle:
            self._free_at = self._clock()
        with self._lock:
            self._scheduler.admit_ready()
            plan, began = self._scheduler.plan(), self._free_at
        if plan is None:
            return False
        fault: AuraError = latents_not_finite()
        try:
            now, costs = self._clock(), self._account.cost_table
            self.current_turn = current_turn(self.models, plan, now, costs)
            if self._subscriptions.notify_turn(plan, now):
                self._pause(_QUARANTINE_NOTICE)
            outcome = self._run_plan(plan)
            plan = outcome.plan
            with self._lock:
                faulty = self._settle(outcome)
            if plan.work is WorkKind.STEP:
                self._diagnosis.record_step()
        except Exception as error:  # whatever a turn fails with, only its own samples may suffer
            with self._lock:
                faulty, fault = self._fail(plan, error)
        if plan.work is WorkKind.STEP and self._on_step is not None:
            self._on_step(StepRecord.of(plan, began, self._free_at - began))
        for sample in faulty:
            self._end(sample, fault)
        self._diagnosis.end_if_unwell()
        return True

    def _run(self) -> None:
        self.models.device.claim_thread()
        while not self._closing:
            self.turn(wait=True)

    def _add(self, sample: HostSample, segment: StageSegment, listener: Listener) -> None:
        try:
            if unwell := self._diagnosis.unwell:
                raise unwell
            sample = self.models.admit(sample)
        except AuraError as error:
            notify(listener, Failed(error))
            return
        if sample.id in self._scheduler:
            self._scheduler.cancel(sample.id)
            cut_off, _ = self._forget(sample.id, wasted=True)
            notify(cut_off, Failed(TakenOver("the image was sent again by another process")))
        try:
            on_device = to_device(sample, self.models.device.torch_device)
            steps = segment.alone * self._quarantine_steps(sample)
            self._scheduler.add(on_device, segment, alone_steps=steps)
        except Exception as error:  # a bad sample must not end the thread
            logger.exception("sample %s was not added", sample.id)
            notify(listener, Failed(to_domain_error(error)))
            return
        self._subscriptions.add(on_device, listener, self._clock())

    def _quarantine_steps(self, sample: HostSample) -> int:
        seconds = mean_step_seconds(sample, self._account.cost_table)
        cache = sample.spec.cache
        return steps_between_snapshots(self._snapshot_every, seconds, cache) + 2  # on their way

    def _drop(self, id: str, listener: Listener) -> None:
        subscription = self._subscriptions.get(id)
        if subscription is not None and subscription.listener is listener:
            self._scheduler.cancel(id)
            self._forget(id, wasted=True)
            self._counts.cancelled += 1

    def _evict_all_and_close(self) -> None:
        self._evict_all(ReplicaLost("the replica is closing"))
        self._closing = True

    def _evict_all(self, error: AuraError) -> None:
        for id in [sample.id for sample in self._scheduler.samples()]:
            self._scheduler.remove(id)
            sample = self._subscriptions[id].resumable
            listener, _ = self._forget(id, wasted=False)  # its snapshot is continued elsewhere
            if sample.index > sample.schedule.start_index and not self._diagnosis.unwell:
                notify_snapshot(listener, sample)
            notify(listener, Failed(error))

    def _run_plan(self, plan: Plan[torch.Tensor]) -> TurnOutcome:
        """Run a plan and charge for it, also if it fails."""
        is_usual, lanes = False, plan.lanes
        try:
            outcome = run_turn(self.models, plan)
            is_usual, lanes = outcome.is_usual, outcome.plan.lanes
            return outcome
        finally:
            with self._lock:
                if plan.work in (WorkKind.LOAD, WorkKind.ATTACH):
                    batch_sizes = self.models.batch_sizes
                    self._scheduler.set_resident(batch_sizes, self.models.attached_extensions)
                    self._account.set_batch_sizes(batch_sizes)
                    self.memory_plans = self.models.memory_plans
                self._charge(plan, lanes, is_usual=is_usual)

    def _charge(self, plan: Plan[torch.Tensor], lanes: int, *, is_usual: bool) -> None:
        """Count the turn; charge its samples with the time since the last turn ended."""
        self._counts.record(plan)
        now = self._clock()
        self._account.charge(plan, now - self._free_at, lanes=lanes, is_usual=is_usual)
        self._scheduler.charge(plan, now - self._free_at)
        self._free_at = now

    def _settle(self, outcome: TurnOutcome) -> list[DeviceSample]:
        """Report ends and snapshots; return samples of which a copy to the host is not finite."""
        plan, results, faulty = outcome.plan, outcome.samples, []
        for sample in self._scheduler.settle(plan, results):
            last = finite_copy(sample)
            if last is None:
                faulty.append(sample)
                continue
            self._counts.finished += 1
            listener, gpu_time = self._forget(sample.id, wasted=False)
            notify(listener, Finished(last, outcome.image, gpu_time, self._account.cost_table))
        if plan.work is WorkKind.STEP:
            stepping = [sample for sample in results if sample.id in self._scheduler]
            lost = self._subscriptions.send_snapshots(stepping, self._clock(), self._snapshot_every)
            faulty += map(self._scheduler.remove, lost)
        if plan.alone and plan.samples[0].id not in self._scheduler.quarantine:
            self._subscriptions.notify_clearance(plan.samples[0].id)
        return faulty

    def _fail(
        self, plan: Plan[torch.Tensor], error: Exception
    ) -> tuple[list[DeviceSample], AuraError]:
        """Settle a turn that failed; return the samples that end with it, and with what.

        The samples of a step take it again, each alone, so that only those end that fail alone.
        One that runs out of memory alone has one more turn, with everything freed.
        """
        fault = to_domain_error(error)
        if not isinstance(fault, CallerError | NumericFault | ProfileChanged):
            logger.error("a turn failed: %s", plan.work, exc_info=error)
        if isinstance(fault, OutOfMemory):
            self.models.device.empty_cache()
        if plan.work is WorkKind.STEP and len(plan.samples) > 1:
            self._scheduler.settle_failed(plan)
        else:
            self._scheduler.settle(plan, ())
            if isinstance(fault, OutOfMemory) and len(plan.samples) == 1:
                if self._subscriptions[plan.samples[0].id].takes_retry():
                    return [], fault
                fault = image_too_large()
            for sample in plan.samples:
                self._scheduler.cancel(sample.id)
        left = (s for s in plan.samples if s.id not in self._scheduler)
        return [s for s in left if s.id in self._subscriptions], fault

    def _end(self, sample: DeviceSample, fault: AuraError) -> None:
        """End a sample that failed, and all others if the replica is to blame."""
        self.current_turn = CurrentTurn.unknown(self._clock())
        error = self._diagnosis.diagnose(self.models, sample, fault)
        self._free_at = self._clock()  # no sample is charged for the examination
        with self._lock:
            self._counts.numeric_faults += isinstance(fault, NumericFault)
            listener, _ = self._forget(sample.id, wasted=True)
            notify(listener, Failed(error))
            if isinstance(error, ReplicaUnwell):
                self._evict_all(error)

    def _forget(self, id: str, *, wasted: bool) -> tuple[Listener, GpuTime]:
        """Drop what is kept for a sample; return its listener and its GPU time."""
        self.models.forget(id)
        return self._subscriptions.pop(id), self._account.finish(id, wasted=wasted)
