"""How callers share one engine: turns whose lengths are stated, on a clock that they add up to."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.caller import NO_CALLER, Caller
from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, with_model
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.step_scheduler import StepScheduler
from serve_app.core.scheduling.work import BatchSize, Plan, WorkKind, share_by_rows
from tests.support.keys import base_key, lora
from tests.support.scheduler_runs import run_plan, sample, whole_segment

A, B, C = Caller("a"), Caller("b"), Caller("c")
SECONDS = {  # of a turn
    WorkKind.LOAD: 20.0,
    WorkKind.ATTACH: 2.0,
    WorkKind.CONDITION: 0.01,
    WorkKind.ENCODE: 0.2,
    WorkKind.STEP: 1.0,
    WorkKind.DECODE: 0.2,
}


@dataclass
class Device:
    """A replica of stated speed: its scheduler, what is in its memory, and its clock."""

    images: int = 4
    models: int = 1  # in memory at the same time
    now: float = 0.0
    plans: list[Plan[float]] = field(default_factory=list)
    done: dict[str, float] = field(default_factory=dict)  # when, by id
    gpu_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by caller
    _resident: list[ModelKey] = field(default_factory=lambda: [ModelKey(Stage.BASE)])
    _attached: dict[ModelKey, list[ExtensionKey]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler: StepScheduler[float] = StepScheduler(
            self._batch_sizes(), model_capacity=self.models, extension_capacity=1
        )

    def add(self, *samples: Sample[float]) -> None:
        for image in samples:
            self.scheduler.add(image, whole_segment(image))

    def turn(self) -> Plan[float] | None:
        self.scheduler.admit_ready()
        plan = self.scheduler.plan()
        if plan is None:
            return None
        seconds = SECONDS[plan.work]
        self.now += seconds
        self.plans.append(plan)
        rows = [image.spec.rows for image in plan.samples]
        for image, share in zip(plan.samples, share_by_rows(rows, seconds), strict=True):
            self.gpu_seconds[image.caller.name] += share
        self.scheduler.charge(plan, seconds)
        for ended in self.scheduler.settle(plan, self._results(plan)):
            self.done[ended.id] = self.now
        return plan

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        while not until() and self.turn() is not None:
            pass

    def _results(self, plan: Plan[float]) -> list[Sample[float]]:
        if isinstance(plan.load, ModelKey):
            self._resident = [key for key in self._resident if key not in plan.evict] + [plan.load]
        elif plan.load is not None:
            attached = self._attached.setdefault(plan.samples[0].model_key, [])
            attached[:] = [key for key in attached if key not in plan.evict] + [plan.load]
        if plan.load is None:
            return run_plan(plan)
        self.scheduler.set_resident(self._batch_sizes(), self._attached)
        return list(plan.samples)

    def _batch_sizes(self) -> dict[ModelKey, BatchSize]:
        return dict.fromkeys(self._resident, BatchSize(self.images, (2 * self.images,)))


def flood(
    device: Device, caller: Caller, steps: int = 30, *, keep: int = 12, side: int = 64
) -> Callable[[], None]:
    """Return what keeps a number of the caller's images in flight."""
    sent: list[str] = []

    def refill() -> None:
        while sum(id in device.scheduler for id in sent) < keep:
            sent.append(f"{caller.name}{len(sent)}")
            device.add(sample(sent[-1], steps, caller=caller, side=side))

    return refill


def turns(device: Device, *refills: Callable[[], None], seconds: float) -> Iterator[Plan[float]]:
    """Run for a number of seconds, and refill before each turn."""
    end = device.now + seconds
    while device.now < end:
        for refill in refills:
            refill()
        plan = device.turn()
        assert plan is not None
        yield plan


def test_one_image_rides_in_every_batch_beside_three_of_a_flood() -> None:
    device = Device()
    refill = flood(device, A)
    for _ in turns(device, refill, seconds=50):
        pass
    began = device.now
    device.add(sample("one", 30, caller=B))
    for plan in turns(device, refill, seconds=100):
        if plan.work is WorkKind.STEP and "one" in device.scheduler:
            assert Counter(s.caller.name for s in plan.samples) == {"a": 3, "b": 1}
        if "one" in device.done:
            break
    assert device.done["one"] - began <= 30 + 1 + 4  # its steps, the turn before, decodes


def test_two_floods_have_equal_places() -> None:
    device = Device()
    refills = flood(device, A), flood(device, B, 7)
    for _ in turns(device, *refills, seconds=400):
        pass
    assert device.gpu_seconds["a"] == pytest.approx(device.gpu_seconds["b"], rel=0.05)


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("steps", [30, 4])
def test_weights_of_three_and_one_give_three_times_the_gpu_seconds(side: int, steps: int) -> None:
    device = Device()
    alice, bob = Caller("a", 3.0), Caller("b", 1.0)
    refills = flood(device, alice), flood(device, bob, steps, side=side)
    for _ in turns(device, *refills, seconds=600):
        pass
    assert device.gpu_seconds["a"] / device.gpu_seconds["b"] == pytest.approx(3.0, rel=0.05)


def test_another_shape_has_every_second_turn_beside_a_flood() -> None:
    device = Device()
    refill = flood(device, A)
    for _ in turns(device, refill, seconds=50):
        pass
    began = device.now
    device.add(sample("one", 30, caller=B, side=128))
    for _ in turns(device, refill, seconds=100):
        pass
    assert device.done["one"] - began <= 2 * 30 + 6


def test_free_places_are_nobody_s_loss() -> None:
    fair, unfair = Device(), Device()
    for device, callers in ((fair, (A, B, C)), (unfair, (NO_CALLER, NO_CALLER, NO_CALLER))):
        for number in range(30):
            device.add(sample(f"{number}", 10 + number, caller=callers[number % 3]))
        device.run()
    assert fair.now <= unfair.now * 1.02


def test_who_had_no_use_for_places_does_not_get_them_later() -> None:
    device = Device()
    refills = [flood(device, A), flood(device, B, keep=1)]
    for _ in turns(device, *refills, seconds=300):
        pass
    refills[1] = flood(device, replace(B), keep=12, steps=29)
    before = device.gpu_seconds.copy()
    for _ in turns(device, refills[0], seconds=0.5):
        pass
    device.add(*(sample(f"later {number}", 20, caller=B) for number in range(8)))
    for _ in turns(device, refills[0], seconds=20):
        pass
    had = {name: seconds - before[name] for name, seconds in device.gpu_seconds.items()}
    assert had["a"] > 0.4 * had["b"]


def with_model_of(name: str, image: Sample[float]) -> Sample[float]:
    return with_model(image, base_key(name))


def test_a_flood_of_one_model_does_not_keep_another_from_loading() -> None:
    device = Device()
    number = 0
    while "b" not in device.done and device.now < 2000:
        while len(device.scheduler) < 12 + (number > 20):
            number += 1
            device.add(with_model_of("x", sample(f"a{number}", 10, caller=A)))
            if number == 20:
                device.add(with_model_of("y", sample("b", 10, caller=B)))
        device.turn()
    # The images of the flood that had begun end, y is loaded, and the image runs.
    assert device.done["b"] < 40 + 20 + 12 * 10 / 4 + 20 + 10 + 10
    loads = Counter(str(plan.load) for plan in device.plans if plan.load)
    assert loads["y"] == 1


def test_two_floods_of_two_models_work_longer_than_they_load() -> None:
    device = Device()
    number = 0
    while device.now < 2000:
        number += 1
        for caller, model in ((A, "x"), (B, "y")):
            if sum(s.caller == caller for s in device.scheduler.samples()) < 12:
                device.add(with_model_of(model, sample(f"{model}{number}", 10, caller=caller)))
        device.turn()
    seconds = defaultdict[WorkKind, float](float)
    for plan in device.plans:
        seconds[plan.work] += SECONDS[plan.work]
    assert seconds[WorkKind.LOAD] <= seconds[WorkKind.STEP]
    assert device.gpu_seconds["a"] == pytest.approx(device.gpu_seconds["b"], rel=0.1)


@pytest.mark.parametrize("kind", ["models", "loras"])
def test_who_loads_all_the_time_leaves_the_others_as_many_seconds(kind: str) -> None:
    device, number = Device(models=2), 0
    stepped = 0.0
    while device.now < 1000:
        while sum(s.caller == A for s in device.scheduler.samples()) < 8:
            number += 1
            new = sample(f"a{number}", 4, caller=A)
            if kind == "models":
                new = with_model_of(f"m{number % 5}", new)
            else:
                new = replace(new, spec=replace(new.spec, extensions=(lora(f"l{number}", 1.0),)))
            device.add(new)
        if not any(s.caller == B for s in device.scheduler.samples()):
            device.add(sample(f"b{number}-{device.now}", 50, caller=B))
        plan = device.turn()
        if plan and plan.work is WorkKind.STEP and B in {s.caller for s in plan.samples}:
            stepped += 1.0
    assert stepped >= 0.4 * device.now
    assert any(id.startswith("a") for id in device.done)


def test_many_models_of_one_caller_load_no_faster_than_the_others_step() -> None:
    device = Device(models=11)
    device.add(sample("b", 100, caller=B))
    device.turn()
    device.add(
        *(with_model_of(f"m{number}", sample(f"a{number}", 4, caller=A)) for number in range(10))
    )
    steps = 0
    while steps < 50:
        plan = device.turn()
        assert plan is not None
        steps += plan.work is WorkKind.STEP and B in {image.caller for image in plan.samples}
    assert device.now <= 2 * 50 + SECONDS[WorkKind.LOAD] + 5


def test_a_model_is_loaded_though_its_caller_has_most_places_beside_another() -> None:
    device = Device(models=2)
    refills = flood(device, A, keep=8), flood(device, B, keep=1)
    for _ in turns(device, *refills, seconds=100):
        pass
    began = device.now
    device.add(with_model_of("y", sample("other", 10, caller=A)))
    for _ in turns(device, *refills, seconds=100):
        pass
    # Its load; as long for the other caller; and its steps in every second turn.
    assert device.done["other"] - began <= 20 + 20 + 2 * 10 + 40


EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 6), st.sampled_from([64, 128]), st.integers(0, 9)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40)
@given(EVENTS, st.integers(1, 4))
def test_whatever_is_cancelled_everything_else_ends_once_and_no_caller_is_remembered(
    events: list[tuple[int, int, int, int]], images: int
) -> None:
    device, expected = Device(images=images), set[str]()
    for number, (caller, steps, side, cancel) in enumerate(events):
        id = str(number)
        device.add(sample(id, steps, side=side, caller=(A, B, Caller("c", 3.0))[caller]))
        expected.add(id)
        for _ in range(cancel % 4):
            device.turn()
        if cancel > 6 and (victims := sorted(expected & set(map(str, range(number + 1))))):
            victim = victims[cancel % len(victims)]
            if device.scheduler.cancel(victim):
                expected.discard(victim)
    device.run()
    assert set(device.done) == expected
    assert repr(device.scheduler).endswith(" 0 callers>")
