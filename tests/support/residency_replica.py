"""A scheduler whose loads, attachments and evictions a test carries out and checks."""

from collections.abc import Iterator
from dataclasses import replace

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, with_model
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, Plan, WorkKind
from tests.support.keys import base_key, lora
from tests.support.scheduler_runs import next_plan, run_plan, whole_segment
from tests.support.scheduler_runs import sample as new_sample

Turn = tuple[Plan[float], tuple[str, ...]]


def model_sample(model: str, id: str, steps: int = 4, loras: str = "") -> Sample[float]:
    """A sample of a model with LoRAs of one letter."""
    bare = with_model(new_sample(id, steps), base_key(model))
    return replace(bare, spec=replace(bare.spec, extensions=tuple(map(lora, loras))))


class Replica:
    """A scheduler with a simulated memory of `capacity` models, and a record of its loads."""

    def __init__(
        self,
        capacity: int,
        *,
        images: int = 2,
        broken: str | None = None,
        sizes: dict[str, BatchSize] | None = None,
        lora_capacity: int = 2,
    ) -> None:
        self.capacity, self.lora_capacity, self.broken = capacity, lora_capacity, broken
        self.resident = [base_key("a")]
        # LoRAs by model
        self.attached: dict[ModelKey, list[ExtensionKey]] = {base_key("a"): []}
        self.sizes = sizes or {}  # of models that differ from `_usual`
        self._usual = BatchSize(images, (2 * images,))
        self.scheduler: StepScheduler[float] = StepScheduler(
            self._batches(), model_capacity=capacity, extension_capacity=lora_capacity
        )
        self.loads: list[str] = []  # models, and LoRAs as "model+lora"

    def add(self, arrival: Sample[float]) -> None:
        self.scheduler.add(arrival, whole_segment(arrival))

    def turns(self) -> Iterator[Turn]:
        while (plan := next_plan(self.scheduler)) is not None:
            models = {sample.model_key for sample in plan.samples}
            assert len(models) == 1, "a batch mixes models"
            if plan.work in (WorkKind.LOAD, WorkKind.ATTACH):
                (self._load if plan.work is WorkKind.LOAD else self._attach)(plan, *models)
                if self._is_broken(plan.load):
                    for sample in plan.samples:
                        self.scheduler.cancel(sample.id)
                    self.scheduler.settle(plan, ())
                    yield plan, ()
                    continue
                yield plan, self._ids(self.scheduler.settle(plan, plan.samples))
            else:
                assert models <= set(self.resident), "a model that is not resident works"
                sets = {sample.active_extensions for sample in plan.samples}
                assert len(sets) == 1, "a batch mixes LoRAs"
                if plan.work is not WorkKind.DECODE:
                    attached = self.attached[plan.samples[0].model_key]
                    assert {ref.key for ref in sets.pop()} <= set(attached), "not attached"
                yield plan, self._ids(self.scheduler.settle(plan, run_plan(plan)))

    def _is_broken(self, load: ModelKey | ExtensionKey | None) -> bool:
        return load is not None and load.name == self.broken

    def _attach(self, plan: Plan[float], model: ModelKey) -> None:
        attached = self.attached[model]
        for evicted in plan.evict:
            assert isinstance(evicted, ExtensionKey)
            attached.remove(evicted)
        if not self._is_broken(plan.load):
            assert isinstance(plan.load, ExtensionKey)
            attached.append(plan.load)
        max_extensions = max(len(sample.active_extensions) for sample in self.scheduler.samples())
        assert len(attached) <= max(self.lora_capacity, max_extensions)
        self.loads.append(f"{model}+{plan.load.name if plan.load else None}")
        self.scheduler.set_resident(self._batches(), self.attached)

    def _load(self, plan: Plan[float], model: ModelKey) -> None:
        assert plan.load == model
        for evicted in plan.evict:
            assert isinstance(evicted, ModelKey)
            running = (sample for sample in self.scheduler.samples() if sample.latents is not None)
            under_way = {sample.model_key for sample in running}
            assert evicted not in under_way, "a model in use is evicted"
            self.resident.remove(evicted)
            del self.attached[evicted]
        if not self._is_broken(model):
            self.resident.append(model)
            self.attached[model] = []
        assert len(self.resident) <= self.capacity
        self.loads.append(str(model))
        self.scheduler.set_resident(self._batches(), self.attached)

    def _batches(self) -> dict[ModelKey, BatchSize]:
        return {key: self.sizes.get(str(key), self._usual) for key in self.resident}

    @staticmethod
    def _ids(done: tuple[Sample[float], ...]) -> tuple[str, ...]:
        return tuple(sample.id for sample in done)
