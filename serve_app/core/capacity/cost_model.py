"""What work costs: TFLOP of a turn by model and image size, and the seconds that turns really take.

No clock: seconds are measured elsewhere and passed in. The weights are fitted to the matmul and
convolution counts of SDXL's published block structure. Convolutions grow with the area, attention
with its square (12 % of base's work and 16 % of the refiner's at 1024 x 1024). They only say how a
turn that was never measured compares with those that were.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median_low
from typing import Any

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import BatchSize, WorkKind

_MEGAPIXEL = 1024 * 1024
# Per megapixel, and per squared megapixel.
_UNET_TFLOP = {Stage.BASE: (5.95, 0.81), Stage.REFINER: (6.12, 1.17)}
# Per megapixel, of a step that reuses deep features: the first and last convolutions and the last
# residual block.
_SHALLOW_TFLOP = {Stage.BASE: 0.10, Stage.REFINER: 0.14}
_DECODE_TFLOP = 10.47  # per megapixel
_PROMPT_TFLOP = 0.11  # of both text encoders
_TFLOPS = 1.0  # TFLOP per second of a slow machine: assumed until the first turn is measured
_MAX_MEASUREMENTS = 24  # that are remembered of each kind of turn
_MAX_KINDS = 64  # of turns; the ones measured least recently are forgotten
_MAX_OF_MEDIAN = 1.5  # the most that one measurement may count for, as a multiple of the median
_ONE_BY_ONE = BatchSize(1)  # assumed where no batch size is known


def megapixel_steps(spec: ImageSpec) -> float:
    """Return what an image counts against its caller's rate limit: network calls x megapixels."""
    return spec.nfe * spec.width * spec.height / 1e6


def step_tflop(stage: Stage, width: int, height: int, rows: int, *, shallow: bool = False) -> float:
    """Return the TFLOP of one UNet call with `rows` rows; sizes are in pixels."""
    area = width * height / _MEGAPIXEL
    if shallow:
        return rows * _SHALLOW_TFLOP[stage] * area
    linear, square = _UNET_TFLOP[stage]
    return rows * (linear * area + square * area**2)


def decode_tflop(width: int, height: int) -> float:
    """Return the TFLOP of decoding latents to an image of a size in pixels, or of encoding one."""
    return _DECODE_TFLOP * width * height / _MEGAPIXEL


@dataclass(frozen=True, slots=True)
class TurnKind:
    """A kind of turn: turns that are equal in all of this take one device equally long."""

    work: WorkKind
    model: ModelKey
    width: int = 0  # pixels
    height: int = 0  # pixels
    rows: int = 0  # of the UNet call, padding included; or prompts
    extensions: tuple[str, ...] = ()  # kinds of the active ones, each of which slows a step
    attached: ExtensionKey | None = None  # what an ATTACH attaches
    shallow: bool = False  # a step that reuses deep features

    @property
    def stage(self) -> Stage:
        """The stage of its model."""
        return self.model.stage

    @property
    def tflop(self) -> float:
        """The TFLOP of the turn; those of loading a model or a LoRA count as 0."""
        match self.work:
            case WorkKind.STEP:
                return step_tflop(
                    self.stage, self.width, self.height, self.rows, shallow=self.shallow
                )
            case WorkKind.ENCODE | WorkKind.DECODE:
                return decode_tflop(self.width, self.height)
            case WorkKind.CONDITION:
                return _PROMPT_TFLOP * self.rows
            case _:
                return 0.0


def turn_kind(
    work: WorkKind,
    sample: Sample[Any],
    *,
    lanes: int = 0,
    load: ModelKey | ExtensionKey | None = None,
    shallow: bool | None = None,
) -> TurnKind:
    """Return the kind of a turn that the sample takes part in, with `lanes` and `load` of its plan.

    A LOAD is always of the sample's own model. `shallow` is that of the sample's next step unless
    another step is meant.
    """
    spec, model = sample.spec, sample.model_key
    match work:
        case WorkKind.LOAD:
            return TurnKind(work, model)
        case WorkKind.ATTACH:
            return TurnKind(work, model, attached=load if isinstance(load, ExtensionKey) else None)
        case WorkKind.CONDITION:
            return TurnKind(work, model, rows=spec.encoded_prompts)
        case WorkKind.STEP:
            kinds = tuple(ref.kind for ref in sample.active_extensions)
            if shallow is None:
                shallow = sample.is_shallow
            return TurnKind(work, model, spec.width, spec.height, lanes, kinds, shallow=shallow)
        case _:
            return TurnKind(work, model, spec.width, spec.height)


@dataclass(frozen=True, slots=True)
class CostTable:
    """The seconds of each kind of turn on a device, and the batch size of each model there."""

    seconds_by_turn: Mapping[TurnKind, float] = field(default_factory=dict)
    batch_sizes: Mapping[ModelKey, BatchSize] = field(default_factory=dict)
    default_batch_size: BatchSize | None = None  # of a model that is not in the table

    @property
    def is_calibrated(self) -> bool:
        """Whether a step was ever measured."""
        return any(turn.work is WorkKind.STEP for turn in self.seconds_by_turn)

    @property
    def max_batch_images(self) -> int:
        """The images that step together of the model of which most do."""
        sizes = (*self.batch_sizes.values(), self.default_batch_size or _ONE_BY_ONE)
        return max(size.images for size in sizes)

    def batch_size(self, model: ModelKey) -> BatchSize:
        """Return the batch size of a model; of an unknown one, the default, else another's."""
        another = next(iter(self.batch_sizes.values()), _ONE_BY_ONE)
        return self.batch_sizes.get(model) or self.default_batch_size or another

    def seconds(self, turn: TurnKind) -> float:
        """Return the predicted seconds of one turn.

        A kind that was not measured is interpolated by its TFLOP between similar kinds: those of
        the same work and stage, else of the same work, else steps; of steps, those that are as
        shallow, if there are any. A load is free until one was measured.
        """
        if turn in self.seconds_by_turn:
            return self.seconds_by_turn[turn]
        similar = [kind for kind in self.seconds_by_turn if kind.work is turn.work]
        similar = [kind for kind in similar if kind.stage is turn.stage] or similar
        similar = [kind for kind in similar if kind.shallow is turn.shallow] or similar
        if not similar and turn.tflop:
            similar = [kind for kind in self.seconds_by_turn if kind.work is WorkKind.STEP]
        by_tflop: dict[float, list[float]] = {}
        for kind in similar:
            by_tflop.setdefault(kind.tflop, []).append(self.seconds_by_turn[kind])
        points = sorted((tflop, fmean(seconds)) for tflop, seconds in by_tflop.items())
        return _interpolate(points, turn.tflop) if points else turn.tflop / _TFLOPS

    def updated(self, newer: "CostTable") -> "CostTable":
        """Return the table with the entries of a newer one, which win over its own."""
        return replace(
            self,
            seconds_by_turn={**self.seconds_by_turn, **newer.seconds_by_turn},
            batch_sizes={**self.batch_sizes, **newer.batch_sizes},
        )


class CostModel:
    """Learns costs from the turns of one device. The one that measures them is the only writer."""

    def __init__(self) -> None:
        self.table = CostTable()  # replaced as a whole, so that readers need no lock
        self._measured: dict[TurnKind, deque[float]] = {}

    def set_batch_sizes(self, batch_sizes: Mapping[ModelKey, BatchSize]) -> None:
        """Set how many samples of each of these models step together."""
        self.table = replace(self.table, batch_sizes={**self.table.batch_sizes, **batch_sizes})

    def observe(self, turn: TurnKind, seconds: float) -> None:
        """Count one more measured turn."""
        known = dict(self.table.seconds_by_turn)
        known.pop(turn, None)  # so that it is the last one again
        if len(known) == _MAX_KINDS:
            oldest = next(iter(known))
            del known[oldest], self._measured[oldest]
        measured = self._measured.setdefault(turn, deque(maxlen=_MAX_MEASUREMENTS))
        measured.append(seconds)
        known[turn] = clipped_mean(measured)
        self.table = replace(self.table, seconds_by_turn=known)


def clipped_mean(values: Iterable[float]) -> float:
    """Return the mean of the values, none of which counts for more than 1.5 times the median.

    So a first call, or a call that the machine held up, can't spoil it.
    """
    values = list(values)
    maximum = _MAX_OF_MEDIAN * median_low(values)
    return fmean(min(value, maximum) for value in values)


def _interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """Return the value at `at`, on the line between the two points beside it.

    Beyond the first or the last point, the value is in proportion to that point's.
    """
    above = bisect_left(points, at, key=lambda point: point[0])
    if 0 < above < len(points):
        (low, low_value), (high, high_value) = points[above - 1 : above + 1]
        return low_value + (high_value - low_value) * (at - low) / (high - low)
    nearest, value = points[min(above, len(points) - 1)]
    return value * at / nearest if nearest else value
