"""The engine: turns plans into steps on the one thread that owns the device.

Knows no Ray, HTTP or event loop. Everyone else sends commands; listeners are called on the engine's
thread and must not block. `turn` is plain and synchronous, so a test can be the thread.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

import torch

from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.gpu_time import GpuTime, GpuTimeAccount
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import StageSegment, with_profile
from serve_app.core.errors import (
    AuraError,
    CallerError,
    EngineFault,
    ImageTooLarge,
    ModelUnavailable,
    OutOfMemory,
    ProfileChanged,
    ReplicaLost,
)
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import PendingWork, Plan, WorkKind
from serve_app.core.service.events import Snapshot
from serve_app.runtime.engine_events import Failed, Finished, Listener, notify
from serve_app.runtime.memory.device import is_out_of_memory
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.stage_model import DeviceSample, HostSample, to_device, to_host
from serve_app.runtime.step_record import StepRecord

logger = logging.getLogger("aura.engine")

SNAPSHOT_GAP = 0.2  # seconds: an event costs a millisecond or so on its way
_FAULTS_TO_ILLNESS = 3  # turns in a row that failed


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done; a value that may travel."""

    state: str  # the scheduler's own words
    turns: int  # UNet calls
    steps: int  # steps of samples: one turn of a batch of four counts four
    finished: int
    cancelled: int
    gpu_seconds: float  # of GPU time; all images' seconds together
    wasted_gpu_seconds: float  # of those, what cancelled and failed images had spent
    costs: CostTable
    positions: dict[str, int]  # index of each sample in flight
    models: dict[
        ModelKey, MemoryPlan
    ]  # those in memory, then those parked; and what was given up for each


@dataclass(slots=True)
class _Waiter:
    """Whom to tell of a sample, and when it was last copied out."""

    listener: Listener
    index: int
    at: float
    retried_alone: bool = False  # whether a turn of it alone once found no room


class Engine:
    """The samples of one replica, stepped together."""

    def __init__(
        self,
        models: ModelCache,
        *,
        snapshot_every: int,
        clock: Callable[[], float] = time.monotonic,
        on_step: Callable[[StepRecord], None] = lambda stepped: (
            None
        ),  # of each step; must not block
    ) -> None:
        self.models = models
        rooms = {"model_capacity": models.capacity, "lora_capacity": models.lora_capacity}
        self._scheduler: StepScheduler[torch.Tensor] = StepScheduler(models.batch_sizes, **rooms)
        self._snapshot_every = snapshot_every
        self._clock, self._on_step = clock, on_step
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiters: dict[str, _Waiter] = {}
        self._account = GpuTimeAccount()
        self._account.set_batch_sizes(models.batch_sizes)
        self._stats = EngineStats("", 0, 0, 0, 0, 0.0, 0.0, self._account.cost_table, {}, {})
        self._pending: tuple[PendingWork[torch.Tensor], ...] = ()
        self._free_at = 0.0  # when the turn before ended, or its wait
        self._faults = 0
        self._closing = False
        self._publish()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """The engine has its own thread and works until `close`."""
        self._thread.start()

    def close(self) -> None:
        """The thread has ended; whoever still waited got `ReplicaLost` and a last snapshot."""
        self._commands.put(self._evict_all)
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._take_commands(wait=False)

    def submit(self, sample: HostSample, segment: StageSegment, listener: Listener) -> None:
        """The sample will be walked to the end of its leg. May be called from any thread.

        A sample that is here already is replaced: who sends it again has given the first one up.
        """
        self._commands.put(lambda: self._add(sample, segment, listener))

    def cancel(self, id: str, listener: Listener) -> None:
        """The listener's sample is dropped at the next step boundary, and it hears no more.

        Nothing happens when the sample has ended, or was sent again and has another listener.
        """
        self._commands.put(lambda: self._drop(id, listener))

    def stats(self) -> EngineStats:
        """What the engine has done, as of its last turn."""
        return self._stats

    def pending(self) -> tuple[PendingWork[torch.Tensor], ...]:
        """What is left of all that is here, as of its last turn: see `core.forecast`."""
        return self._pending

    def check(self) -> None:
        """Returns when the engine is well; raises `EngineFault` when it can't work any more."""
        if self._thread.ident is not None and not self._thread.is_alive():
            raise EngineFault("the engine thread has ended")
        if self._faults >= _FAULTS_TO_ILLNESS:
            raise EngineFault(f"{self._faults} turns in a row have failed")

    def turn(self, *, wait: bool = False) -> bool:
        """Commands taken, one plan made, run and settled; whether there was anything to do. With
        `wait` and nothing to do, blocks until a command comes.
        """
        idle = not len(self._scheduler)
        self._take_commands(wait=wait and idle)
        if idle:
            self._free_at = self._clock()
        plan, began = self._scheduler.plan(), self._free_at
        if plan is not None:
            try:
                results, picture = self._run_plan(plan)
                self._charge(plan, whole=True)
                self._settle(plan, results, picture)
                self._faults = 0 if plan.work is WorkKind.STEP else self._faults
            except Exception as error:  # whatever a turn dies of, only its own samples may suffer
                self._charge(plan, whole=False)
                self._fail(plan, error)
            if plan.work is WorkKind.STEP:
                self._on_step(StepRecord.of(plan, began, self._free_at - began))
                turns, steps = self._stats.turns + 1, self._stats.steps + len(plan.samples)
                self._stats = replace(self._stats, turns=turns, steps=steps)
        self._publish()
        return plan is not None

    def _run(self) -> None:
        self.models.device.claim_thread()
        while not self._closing:
            self.turn(wait=True)

    def _take_commands(self, *, wait: bool) -> None:
        try:
            self._commands.get(block=wait)()
            while True:
                self._commands.get_nowait()()
        except Empty:
            pass

    def _add(self, sample: HostSample, leg: StageSegment, listener: Listener) -> None:
        try:
            sample = self.models.admit(sample)
        except AuraError as error:
            notify(listener, Failed(error))
            return
        if sample.id in self._scheduler:
            self._scheduler.cancel(sample.id)
            self._forget(sample.id, wasted=True)
        try:
            self._scheduler.add(to_device(sample, self.models.device.torch_device), leg)
        except Exception as error:  # a bad sample must not end the thread
            logger.exception("sample %s was not taken", sample.id)
            notify(listener, Failed(_to_domain_error(error)))
            return
        self._waiters[sample.id] = _Waiter(listener, sample.index, self._clock())

    def _drop(self, id: str, listener: Listener) -> None:
        waiter = self._waiters.get(id)
        if waiter is not None and waiter.listener is listener:
            self._scheduler.cancel(id)
            self._forget(id, wasted=True)
            self._stats = replace(self._stats, cancelled=self._stats.cancelled + 1)

    def _evict_all(self) -> None:
        for sample in self._scheduler.samples():
            left = self._scheduler.evict(sample.id)
            listener, _ = self._forget(sample.id, wasted=False)  # its snapshot goes on elsewhere
            if left.index > left.schedule.start_index:
                notify(listener, Snapshot(to_host(left)))
            notify(listener, Failed(ReplicaLost("the replica is closing")))
        self._closing = True

    def _run_plan(self, plan: Plan[torch.Tensor]) -> tuple[list[DeviceSample], RgbImage | None]:
        if plan.work in (WorkKind.LOAD, WorkKind.ATTACH):
            return self._load(plan), None
        model = self.models[plan.samples[0].model_key]
        if plan.work is WorkKind.STEP:
            return model.step(plan.samples, plan.lanes), None
        (sample,) = plan.samples
        if plan.work is WorkKind.CONDITION:
            return [model.condition(sample)], None
        if plan.work is WorkKind.ENCODE:
            return [model.encode(sample)], None
        return [with_profile(sample, model.profile.name)], model.decode(sample)

    def _load(self, plan: Plan[torch.Tensor]) -> list[DeviceSample]:
        try:
            model = plan.samples[0].model_key
            if plan.work is WorkKind.LOAD:
                self.models.load(model, [key for key in plan.evict if isinstance(key, ModelKey)])
            else:
                evict = [name for name in plan.evict if isinstance(name, str)]
                self.models.attach(model, str(plan.load), evict)
        finally:
            self._scheduler.set_resident(self.models.batch_sizes, self.models.attached_loras)
            self._account.set_batch_sizes(self.models.batch_sizes)
        return list(plan.samples)

    def _charge(self, plan: Plan[torch.Tensor], *, whole: bool) -> None:
        """The turn's samples pay for all since the one before, the time between turns too."""
        now = self._clock()
        self._account.charge(plan, now - self._free_at, completed=whole)
        self._free_at = now

    def _settle(
        self, plan: Plan[torch.Tensor], results: list[DeviceSample], picture: RgbImage | None
    ) -> None:
        for sample in self._scheduler.settle(plan, results):
            last = to_host(sample)
            self._stats = replace(self._stats, finished=self._stats.finished + 1)
            listener, spent = self._forget(sample.id, wasted=False)
            notify(listener, Finished(last, picture, spent, self._account.cost_table))
        if plan.work is WorkKind.STEP:
            self._send_snapshots(results)

    def _send_snapshots(self, stepped: list[DeviceSample]) -> None:
        now = self._clock()
        for sample in stepped:
            waiter = self._waiters.get(sample.id)
            if (
                waiter is not None
                and sample.index - waiter.index >= self._snapshot_every
                and now - waiter.at >= SNAPSHOT_GAP
            ):
                waiter.index, waiter.at = sample.index, now
                notify(waiter.listener, Snapshot(to_host(sample)))

    def _fail(self, plan: Plan[torch.Tensor], error: Exception) -> None:
        named = _to_domain_error(error)
        if isinstance(named, OutOfMemory):
            self.models.device.empty_cache()
            if len(plan.samples) == 1:
                waiter = self._waiters[plan.samples[0].id]
                if not waiter.retried_alone:
                    waiter.retried_alone = True  # once more, alone, with everything freed
                    return
                named = ImageTooLarge(
                    "this image alone does not fit on the device: ask for a smaller one; the "
                    "service's operator can lower MODEL_MAX_BATCH_SIZE or use MODEL_PRECISION=fp16"
                )
        if not isinstance(named, CallerError | ProfileChanged):
            logger.error("a turn failed: %s", plan.work, exc_info=error)
            self._faults += not isinstance(named, ModelUnavailable)
        for sample in plan.samples:
            if self._scheduler.cancel(sample.id):
                listener, _ = self._forget(sample.id, wasted=True)
                notify(listener, Failed(named))

    def _forget(self, id: str, *, wasted: bool) -> tuple[Listener, GpuTime]:
        """Whom to tell, and the GPU time that the sample took."""
        self.models.forget(id)
        return self._waiters.pop(id).listener, self._account.finish(id, wasted=wasted)

    def _publish(self) -> None:
        """Puts what others may read into values, replaced whole: they need no lock."""
        self._pending = self._scheduler.pending()
        self._stats = replace(
            self._stats,
            state=repr(self._scheduler),
            gpu_seconds=self._account.total_seconds,
            wasted_gpu_seconds=self._account.wasted_seconds,
            costs=self._account.cost_table,
            positions={s.id: s.index for s in self._scheduler.samples()},
            models=self.models.memory_plans,
        )


def _to_domain_error(error: Exception) -> AuraError:
    """The error by a name of ours; the sentence says nothing of the inside."""
    if is_out_of_memory(error):
        return OutOfMemory("the device has no room for this image now")
    if isinstance(error, AuraError):
        return error
    return EngineFault("a step failed")
