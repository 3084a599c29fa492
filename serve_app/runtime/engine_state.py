"""`EngineState`: the samples of one engine, who listens to them, and what they have cost.

The engine changes it on its own thread and under its lock, because other threads read it. Nothing
here runs a network; only ends and snapshots are copied from the device.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace

import torch

from serve_app.core.capacity.cost_model import CostTable, turn_kind
from serve_app.core.capacity.forecast import mean_step_seconds
from serve_app.core.capacity.gpu_time import GpuTime, GpuTimeAccount
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.errors import (
    AuraError,
    CallerError,
    NumericFault,
    OutOfMemory,
    ProfileChanged,
)
from serve_app.core.replica_errors import TakenOver
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import Plan, WorkKind
from serve_app.core.service.events import EngineStats
from serve_app.runtime.engine_errors import image_too_large, to_domain_error
from serve_app.runtime.engine_events import Failed, Finished, Listener, notify
from serve_app.runtime.live_sample import DeviceSample, HostSample, finite_copy, to_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.subscriptions import Subscriptions, notify_snapshot, steps_between_snapshots
from serve_app.runtime.turn import LaunchedTurn
from serve_app.runtime.turn_counts import TurnCounts

logger = logging.getLogger("aura.engine")


class EngineState:
    """The scheduler, the subscriptions and the accounts of one engine, kept in step."""

    def __init__(self, models: ModelCache, snapshot_every: int) -> None:
        self._models = models
        self._snapshot_every = snapshot_every
        self.scheduler: StepScheduler[torch.Tensor] = StepScheduler(
            models.batch_sizes,
            model_capacity=models.capacity,
            extension_capacity=models.extension_capacity,
        )
        self.subscriptions = Subscriptions()
        self._account = GpuTimeAccount()
        self._account.set_batch_sizes(models.batch_sizes)
        self._counts = TurnCounts()
        self.memory_plans: Mapping[ModelKey, MemoryPlan] = models.memory_plans  # of the last load

    @property
    def costs(self) -> CostTable:
        """What turns of each kind have taken: a value that is replaced as a whole."""
        return self._account.cost_table

    def stats(self) -> EngineStats:
        """Return what the engine has done so far."""
        return EngineStats(
            **asdict(self._counts),
            gpu_seconds=self._account.total_seconds,
            wasted_gpu_seconds=self._account.wasted_seconds,
            seconds_by_caller=self._account.seconds_by_caller,
            costs=self.costs,
            positions={sample.id: sample.index for sample in self.scheduler.samples()},
            models=tuple(self.memory_plans),
        )

    def add(
        self, sample: HostSample, segment: StageSegment, listener: Listener, now: float
    ) -> None:
        """Take a sample, to be stepped to the end of the segment.

        A sample with the id of an earlier one replaces it, whose listener gets `TakenOver`.
        """
        try:
            sample = self._models.admit(sample)
        except AuraError as error:
            notify(listener, Failed(error))
            return
        if sample.id in self.scheduler:
            self.scheduler.cancel(sample.id)
            cut_off, _ = self.forget(sample.id, wasted=True)
            notify(cut_off, Failed(TakenOver("the image was sent again by another process")))
        try:
            on_device = to_device(sample, self._models.device.torch_device)
            steps = segment.alone * self._quarantine_steps(sample)
            self.scheduler.add(on_device, segment, alone_steps=steps)
            # An ingress of the release before, during a redeploy, sends none.
            self.subscriptions.add(
                on_device, listener, now, watched=getattr(segment, "watched", False)
            )
        except Exception as error:  # a bad sample must not end the thread
            logger.exception("sample %s was not added", sample.id)
            notify(listener, Failed(to_domain_error(error)))
            return

    def drop(self, id: str, listener: Listener) -> None:
        """Drop the listener's sample, if it is still there and nobody else's."""
        subscription = self.subscriptions.get(id)
        if subscription is not None and subscription.listener is listener:
            self.scheduler.cancel(id)
            self.forget(id, wasted=True)
            self._counts.cancelled += 1

    def evict_all(self, error: AuraError, *, with_snapshots: bool) -> None:
        """End all samples with an error; each is continued elsewhere from its last snapshot."""
        for id in [sample.id for sample in self.scheduler.samples()]:
            self.scheduler.remove(id)
            sample = self.subscriptions[id].resumable
            listener, _ = self.forget(id, wasted=False)
            if with_snapshots and sample.index > sample.schedule.start_index:
                notify_snapshot(listener, sample)
            notify(listener, Failed(error))

    def end(self, id: str, error: AuraError, *, is_numeric: bool) -> None:
        """End a sample that has left the scheduler with an error."""
        self._counts.numeric_faults += is_numeric
        listener, _ = self.forget(id, wasted=True)
        notify(listener, Failed(error))

    def forget(self, id: str, *, wasted: bool) -> tuple[Listener, GpuTime]:
        """Drop what is kept for a sample; return its listener and its GPU time."""
        self._models.forget(id)
        return self.subscriptions.pop(id), self._account.finish(id, wasted=wasted)

    def update_models(self) -> None:
        """Take note of what a load, or an attachment, has brought into memory."""
        batch_sizes = self._models.batch_sizes
        self.scheduler.set_resident(batch_sizes, self._models.attached_extensions)
        self._account.set_batch_sizes(batch_sizes)
        self.memory_plans = self._models.memory_plans

    def charge(self, turn: LaunchedTurn, seconds: float) -> None:
        """Count a turn; charge its samples with the seconds since the last one ended."""
        plan = turn.plan
        self._counts.record(plan)
        self._account.charge(plan, seconds, lanes=turn.lanes, is_usual=turn.is_usual)
        if turn.charged is None:
            self.scheduler.charge(plan, seconds)
        else:
            self.scheduler.shares.correct(plan, turn.charged, seconds)

    def can_be_followed(self, turn: LaunchedTurn, now: float) -> bool:
        """Return whether another step may be planned before one is done, which begins now.

        Not if the scheduler says no, or a snapshot will be due, which needs its latents.
        """
        is_due, end = self.subscriptions.is_snapshot_due, now + self._expected_seconds(turn)
        return self.scheduler.can_be_followed(turn.plan) and not any(
            is_due(sample, end, self._snapshot_every) for sample in turn.samples
        )

    def settle_ahead(self, turn: LaunchedTurn) -> LaunchedTurn:
        """Settle a step that the device has yet to do, and charge for it as much as is expected.

        Return it with what was charged, which `charge` corrects when it is done.
        """
        expected = self._expected_seconds(turn)
        self.scheduler.charge(turn.plan, expected)
        self.scheduler.settle(turn.plan, turn.samples)
        return replace(turn, charged=expected)

    def take_back(self, turn: LaunchedTurn) -> None:
        """Undo `settle_ahead` of a step that has failed: its samples take it again, each alone."""
        self.scheduler.take_back(turn.plan)
        self._models.forget_steps(turn.plan.samples)

    def settle(self, turn: LaunchedTurn, now: float) -> list[DeviceSample]:
        """Report ends, previews and snapshots; return samples that are not finite when copied."""
        plan, results, faulty = turn.plan, turn.samples, []
        for sample in self.scheduler.settle(plan, results):
            last = finite_copy(sample)
            if last is None:
                faulty.append(sample)
                continue
            self._counts.finished += 1
            listener, gpu_time = self.forget(sample.id, wasted=False)
            notify(listener, Finished(last, turn.image, gpu_time, self.costs))
        self.subscriptions.send_previews(turn.previews)
        if plan.work is WorkKind.STEP:
            stepping = [sample for sample in results if sample.id in self.scheduler]
            lost = self.subscriptions.send_snapshots(stepping, now, self._snapshot_every)
            faulty += map(self.scheduler.remove, lost)
        if plan.alone and plan.samples[0].id not in self.scheduler.quarantine:
            self.subscriptions.notify_clearance(plan.samples[0].id)
        return faulty

    def fail(
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
            self._models.device.empty_cache()
        if plan.work is WorkKind.STEP and len(plan.samples) > 1:
            self.scheduler.settle_failed(plan)
        else:
            self.scheduler.settle(plan, ())
            if isinstance(fault, OutOfMemory) and len(plan.samples) == 1:
                if self.subscriptions[plan.samples[0].id].takes_retry():
                    return [], fault
                fault = image_too_large()
            for sample in plan.samples:
                self.scheduler.cancel(sample.id)
        left = (s for s in plan.samples if s.id not in self.scheduler)
        return [s for s in left if s.id in self.subscriptions], fault

    def _expected_seconds(self, turn: LaunchedTurn) -> float:
        kind = turn_kind(WorkKind.STEP, turn.plan.samples[0], lanes=turn.lanes)
        return self.costs.seconds(kind)

    def _quarantine_steps(self, sample: HostSample) -> int:
        seconds = mean_step_seconds(sample, self.costs)
        cache = sample.spec.cache
        return steps_between_snapshots(self._snapshot_every, seconds, cache) + 2  # on their way
