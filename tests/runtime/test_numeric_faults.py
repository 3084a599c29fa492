"""Numbers that are not finite end their own image, and the replica only if its self-test fails."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from serve_app.core.diffusion.sample import StageSegment
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import EngineFault, NumericFault, OutputNotFinite, ReplicaUnwell
from serve_app.runtime.engine import Engine
from serve_app.runtime.engine_events import Failed
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.stage_model import StageModel
from tests.support.analytic_model import ConstantDenoiser, analytic_model
from tests.support.damaged_models import POISONED, DamagedDemo
from tests.support.engine_runs import Heard, drain, sample_of, whole

SPEC = ImageSpec(prompt="a red circle", seed=3, width=128, height=128, steps=4, guidance=5)
POISON = replace(SPEC, prompt=POISONED)


class Clock:
    """The engine's seconds, which a test sets, and which examinations take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def demo() -> DamagedDemo:
    """The demo, whose UNet meets a NaN in every image of one prompt."""
    demo = DamagedDemo()
    demo.poison()
    return demo


@pytest.fixture(scope="module")
def model(demo: DamagedDemo) -> StageModel:
    return demo.fit()


@pytest.fixture
def engine(model: StageModel) -> Engine:
    return Engine(ModelCache.of(model), snapshot_every=1)


def submit(engine: Engine, spec: ImageSpec, id: str) -> Heard:
    heard, sample = Heard(), sample_of(spec, id)
    engine.submit(sample, whole(sample), heard)
    return heard


def error_of(heard: Heard) -> NumericFault:
    error = heard.failed.error
    assert isinstance(error, NumericFault), error
    return error


def test_a_poisoned_sample_ends_alone_and_its_neighbours_keep_their_bytes(engine: Engine) -> None:
    alone = submit(engine, SPEC, "alone")
    drain(engine)
    poisoned, neighbour = submit(engine, POISON, "poisoned"), submit(engine, SPEC, "neighbour")
    drain(engine)
    error = error_of(poisoned)
    assert error.problem == "the image's latents are not finite (NaN or infinite)"
    assert error.remedy == "Try another seed, less guidance or smaller prompt weights"
    assert np.array_equal(neighbour.picture, alone.picture)
    assert neighbour.finished.sample.warnings == ()
    assert engine.stats().numeric_faults == 1
    assert not engine.stats().positions


def test_a_segment_that_another_stage_continues_is_checked_at_its_end(model: StageModel) -> None:
    engine = Engine(ModelCache.of(model), snapshot_every=99)
    heard = Heard()
    engine.submit(sample_of(POISON), StageSegment(Stage.BASE, 2, last=False), heard)
    drain(engine)
    assert isinstance(heard.failed.error, NumericFault)


def test_a_snapshot_that_is_not_finite_is_none_and_ends_its_image_at_once(
    model: StageModel,
) -> None:
    now = iter(range(10**6))
    engine = Engine(ModelCache.of(model), snapshot_every=1, clock=lambda: next(now))
    healthy, poisoned = submit(engine, SPEC, "healthy"), submit(engine, POISON, "poisoned")
    drain(engine)
    assert [snapshot.index for snapshot in healthy.snapshots] == [1, 2, 3, 4]
    assert not poisoned.snapshots
    assert poisoned.events[-1] == Failed(error_of(poisoned))
    assert engine.stats().steps == 4 + 1


def test_a_closing_engine_sends_no_snapshot_that_is_not_finite(model: StageModel) -> None:
    engine = Engine(ModelCache.of(model), snapshot_every=99)
    healthy, poisoned = submit(engine, SPEC, "healthy"), submit(engine, POISON, "poisoned")
    while not engine.stats().steps:
        engine.turn()
    engine.close()
    assert [snapshot.index for snapshot in healthy.snapshots] == [1]
    assert not poisoned.snapshots


def test_callers_alone_never_make_a_replica_unwell(engine: Engine) -> None:
    for number in range(5):
        error_of_each = submit(engine, POISON, str(number))
        drain(engine)
        error_of(error_of_each)
        engine.check()
    healthy = submit(engine, SPEC, "healthy")
    drain(engine)
    assert healthy.picture.shape == (128, 128, 3)
    assert engine.stats().numeric_faults == 5


@pytest.fixture(scope="module", params=[True, False], ids=["strict", "fast"])
def fitted(request: pytest.FixtureRequest) -> tuple[DamagedDemo, StageModel]:
    """The demo in each mode, sound while it is loaded."""
    demo = DamagedDemo(strict=request.param)
    return demo, demo.fit()


@pytest.mark.parametrize(
    ("network", "parameter"),
    [
        ("text_encoder", "position_embedding.weight"),
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_in.weight"),
        ("vae", "decoder.conv_out.bias"),
    ],
)
def test_weights_that_turn_to_nan_in_memory_make_the_replica_unwell_and_no_picture(
    fitted: tuple[DamagedDemo, StageModel], network: str, parameter: str
) -> None:
    demo, model = fitted
    engine = Engine(ModelCache.of(model), snapshot_every=1)
    with demo.damaged(network, parameter):
        first, second = submit(engine, SPEC, "first"), submit(engine, SPEC, "second")
        drain(engine)
    late = submit_and_drain(engine, SPEC, "late")
    for heard in (first, second, late):
        assert isinstance(heard.failed.error, ReplicaUnwell)
    with pytest.raises(EngineFault, match="the self-test fails"):
        engine.check()
    assert model.failed_self_test() == ""


@pytest.mark.parametrize(
    ("network", "parameter"),
    [
        ("text_encoder", "position_embedding.weight"),
        ("unet", "conv_in.bias"),
        ("vae", "decoder.conv_out.bias"),
    ],
)
def test_finite_weights_that_change_in_memory_fail_the_self_test(
    fitted: tuple[DamagedDemo, StageModel], network: str, parameter: str
) -> None:
    """In strict mode by one bit of the picture; in fast mode not by rounding."""
    demo, model = fitted
    with demo.damaged(network, parameter, by=-100.0):
        assert model.failed_self_test() == "the picture has changed since the model was loaded"
    with demo.damaged("unet", "conv_in.bias", by=1e-5):
        assert bool(model.failed_self_test()) is model.profile.strict
    assert model.failed_self_test() == ""


def test_a_network_that_gives_nan_at_load_is_refused_in_both_modes(
    fitted: tuple[DamagedDemo, StageModel],
) -> None:
    demo, _ = fitted
    with (
        demo.damaged("vae", "decoder.conv_in.weight"),
        pytest.raises(OutputNotFinite, match="the VAE's output is not finite") as refused,
    ):
        demo.fit()
    assert refused.value.code == "NUMERIC_FAULT"
    with (
        demo.damaged("unet", "conv_in.weight"),
        pytest.raises(OutputNotFinite, match="the UNet's output is not finite"),
    ):
        demo.fit()


class PoisonedDenoiser(ConstantDenoiser):
    """Gives NaN for every sample."""

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        return super().__call__(x, inputs, lanes) * torch.nan


class CountedModel:
    """A model that counts its self-tests, each of which takes some seconds.

    They pass, but for the first ones, which end with `failures`.
    """

    def __init__(
        self, model: StageModel, clock: Clock, seconds: float, failures: Sequence[str] = ()
    ) -> None:
        self._model, self._clock, self._seconds = model, clock, seconds
        self._failures = list(failures)
        self.tests: list[float] = []  # when each began
        self.during: Callable[[], None] = lambda: None  # called when their time is over

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def failed_self_test(self) -> str:
        self.tests.append(self._clock.now)
        self._clock.now += self._seconds
        self.during()
        return self._failures.pop(0) if self._failures else ""


def test_a_replica_that_failed_its_self_test_is_unwell_for_every_image_of_the_turn() -> None:
    counted: Any = CountedModel(
        analytic_model(PoisonedDenoiser()), Clock(), 0.01, ["the picture has changed"]
    )
    engine = Engine(ModelCache.of(counted), snapshot_every=99, clock=Clock())
    images = [Heard(), Heard()]
    for number, heard in enumerate(images):  # both end with the same turn
        engine.submit(sample_of(SPEC, str(number)), StageSegment(Stage.BASE, 1, last=False), heard)
    drain(engine)
    late = submit_and_drain(engine, SPEC, "late")
    for heard in (*images, late):
        assert isinstance(heard.failed.error, ReplicaUnwell)
    assert len(counted.tests) == 1
    with pytest.raises(EngineFault, match="the picture has changed"):
        engine.check()


def test_an_examination_is_not_overdue_when_it_takes_longer_than_the_step_that_failed() -> None:
    clock = Clock()
    denoiser = ConstantDenoiser()
    counted: Any = CountedModel(analytic_model(denoiser), clock, 100.0)
    engine = Engine(ModelCache.of(counted), snapshot_every=99, clock=clock)
    for number in range(9):  # until steps are known to take no time
        submit_and_drain(engine, replace(SPEC, steps=9), str(number))
    checks = []

    def check() -> None:
        engine.check()
        checks.append(engine.is_silent())

    counted.during = check
    denoiser.target = float("nan")
    error_of(submit_and_drain(engine, SPEC, "poisoned"))
    assert checks == [False]


@pytest.mark.parametrize(("seconds", "pause"), [(0.01, 10.0), (1.0, 50.0)])
def test_examinations_take_no_more_than_a_small_share_of_the_time(
    seconds: float, pause: float
) -> None:
    clock = Clock()
    counted: Any = CountedModel(analytic_model(PoisonedDenoiser()), clock, seconds)
    engine = Engine(ModelCache.of(counted), snapshot_every=1, clock=clock)
    for number in range(40):
        error_of(submit_and_drain(engine, replace(SPEC, steps=1), str(number)))
        clock.now += pause / 8
    assert len(counted.tests) in (4, 5)
    assert min(np.diff(counted.tests)) >= pause
    assert engine.stats().gpu_seconds == 0  # nobody is charged for them


def submit_and_drain(engine: Engine, spec: ImageSpec, id: str) -> Heard:
    heard = submit(engine, spec, id)
    drain(engine)
    return heard


_CHECKS = {"isfinite", "isnan", "isinf", "aminmax"}
_WAITS = {"item", "is_nonzero", "_local_scalar_dense", "equal"}


class Operations(TorchDispatchMode):
    """Records what torch computes on this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        self.names.append(func.overloadpacket.__name__)
        result: torch.Tensor = func(*args, **(kwargs or {}))
        return result


@pytest.fixture
def operations() -> Iterator[Operations]:
    with Operations() as operations:
        yield operations


def test_a_step_is_not_checked_and_a_decode_waits_for_no_answer_of_its_own(
    fitted: tuple[DamagedDemo, StageModel], operations: Operations
) -> None:
    _, model = fitted
    engine = Engine(ModelCache.of(model), snapshot_every=99)
    submit_and_drain(engine, SPEC, "first of its size")  # for which lanes are compared
    operations.names.clear()
    heard, sample = Heard(), sample_of(SPEC)
    engine.submit(sample, whole(sample), heard)
    per_turn = []
    while engine.turn():
        per_turn.append(list(operations.names))
        operations.names.clear()
    *steps, decode = per_turn[1:]  # the first one is condition or a step
    assert len(steps) >= 2
    for names in steps:
        assert "conv2d" in names
        assert not (_CHECKS | _WAITS) & set(names)
    assert _CHECKS & set(decode)
    assert not _WAITS & set(decode)
    assert heard.picture.shape == (128, 128, 3)


def test_one_colour_from_finite_values_is_an_image_with_a_warning() -> None:
    engine = Engine(ModelCache.of(analytic_model(ConstantDenoiser(0.25))), snapshot_every=99)
    heard = submit_and_drain(engine, replace(SPEC, width=64, height=64), "flat")
    assert heard.finished.sample.warnings == ("the image of seed 3 is #3f3f3f everywhere",)


def test_a_prompt_whose_embeddings_are_not_finite_ends_before_its_first_step(
    fitted: tuple[DamagedDemo, StageModel],
) -> None:
    demo, model = fitted
    engine = Engine(ModelCache.of(model), snapshot_every=1)
    tokenized = demo.modules.text_encoders.tokenize("star", "prompt")
    (star, _) = tokenized.chunks[0][0][-1]  # a word that the self-test's prompt lacks
    with demo.damaged("text_encoder", "token_embedding.weight", row=star):
        heard = submit_and_drain(engine, replace(SPEC, prompt="a star"), "star")
    assert error_of(heard).problem.startswith("the prompt's embeddings")
    assert engine.stats().steps == 0
    engine.check()
