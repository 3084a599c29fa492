"""What work costs: TFLOP of a turn by model and size, and the seconds that turns really take.

Knows no clock: seconds are measured elsewhere and passed in.
The weights are fitted to the matmul and convolution counts of SDXL's published block structure:
convolutions grow with the area, attention with its square (12 % of base and 16 % of the refiner
at 1024 x 1024). They only say how a turn that was never seen compares with those that were.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median_low
from typing import Any

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.scheduling.work import BatchSize, WorkKind

_MEGAPIXEL = 1024 * 1024
_UNET_TFLOP = {Stage.BASE: (5.95, 0.81), Stage.REFINER: (6.12, 1.17)}  # per area, per area squared
_DECODE_TFLOP = 10.47  # per area
_PROMPT_TFLOP = 0.11  # both text encoders
_TFLOPS = 1.0  # TFLOP a second: what a slow machine does, until the first turn is measured
_REMEMBERED = 24  # seconds of each kind of turn
_KINDS = 64  # of turn; those not seen for longest are forgotten
_MOST = 1.5  # times the median that one turn may count for
_ONE_BY_ONE = BatchSize(1, 0)  # where nobody said how many step together


def megapixel_steps(spec: ImageSpec) -> float:
    """What an image counts against its caller's allowance: steps times megapixels, each of Heun's
    twice."""
    steps = spec.steps if spec.strength is None else max(1.0, spec.steps * spec.strength)
    return steps * spec.sampler.nfe * spec.width * spec.height / 1e6


def step_tflop(stage: Stage, width: int, height: int, rows: int) -> float:
    """Work of one UNet call with `rows` rows at a picture size in pixels."""
    area = width * height / _MEGAPIXEL
    linear, square = _UNET_TFLOP[stage]
    return rows * (linear * area + square * area**2)


def decode_tflop(width: int, height: int) -> float:
    """Work of turning latents into a picture; an encode is counted the same."""
    return _DECODE_TFLOP * width * height / _MEGAPIXEL


def share_by_rows(rows: Sequence[int], seconds: float) -> list[float]:
    """The GPU time of each image in a turn: the turn's seconds, shared by the images' rows.

    This is what GPU time means here, measured or predicted. Padding is nobody's, so those who are
    there pay for it; and what all images pay is what the device was busy.
    """
    return [seconds * own / sum(rows) for own in rows]


@dataclass(frozen=True, slots=True)
class TurnKind:
    """A kind of turn: those alike in all of this take one device equally long."""

    work: WorkKind
    model: ModelKey
    width: int = 0  # pixels
    height: int = 0  # pixels
    rows: int = 0  # of the UNet call, padding included; or prompts
    loras: int = 0  # active ones: they slow a step
    attached: str | None = None  # what an ATTACH attaches

    @property
    def stage(self) -> Stage:
        """The stage of its model."""
        return self.model.stage

    @property
    def tflop(self) -> float:
        """Its work; a load has none that is counted so."""
        match self.work:
            case WorkKind.STEP:
                return step_tflop(self.stage, self.width, self.height, self.rows)
            case WorkKind.ENCODE | WorkKind.DECODE:
                return decode_tflop(self.width, self.height)
            case WorkKind.CONDITION:
                return _PROMPT_TFLOP * self.rows
            case _:
                return 0.0


def turn_kind(
    work: WorkKind, sample: Sample[Any], *, lanes: int = 0, load: ModelKey | str | None = None
) -> TurnKind:
    """Return the kind of a turn that the sample takes part in, with `lanes` and `load` of its plan.

    A LOAD is always of the sample's own model.
    """
    spec, model = sample.spec, sample.model_key
    match work:
        case WorkKind.LOAD:
            return TurnKind(work, model)
        case WorkKind.ATTACH:
            return TurnKind(work, model, attached=load if isinstance(load, str) else None)
        case WorkKind.CONDITION:
            return TurnKind(work, model, rows=spec.rows)
        case WorkKind.STEP:
            active = len(sample.active_loras)
            return TurnKind(work, model, spec.width, spec.height, lanes, loras=active)
        case _:
            return TurnKind(work, model, spec.width, spec.height)


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds that each kind of turn takes on a device, of those that were seen lately; and how
    many samples of each model step together there. A value that travels."""

    seconds_by_turn: Mapping[TurnKind, float] = field(default_factory=dict)
    batch_sizes: Mapping[ModelKey, BatchSize] = field(default_factory=dict)
    default_batch_size: BatchSize | None = None  # of a model that was never there

    @property
    def is_calibrated(self) -> bool:
        """Whether a step was ever seen."""
        return any(turn.work is WorkKind.STEP for turn in self.seconds_by_turn)

    def batch_size(self, model: ModelKey) -> BatchSize:
        """Return the batch size of a model; of an unknown one, the default, else another's."""
        another = next(iter(self.batch_sizes.values()), _ONE_BY_ONE)
        return self.batch_sizes.get(model) or self.default_batch_size or another

    def seconds(self, turn: TurnKind) -> float:
        """Predicted seconds of one turn.

        What was not seen is set in proportion, by its TFLOP, to its likes: turns of the same work
        and stage, else of the same work, else steps. A load is none of those, and free until seen.
        """
        if turn in self.seconds_by_turn:
            return self.seconds_by_turn[turn]
        likes = [one for one in self.seconds_by_turn if one.work is turn.work]
        likes = [one for one in likes if one.stage is turn.stage] or likes
        if not likes and turn.tflop:
            likes = [one for one in self.seconds_by_turn if one.work is WorkKind.STEP]
        seen: dict[float, list[float]] = {}
        for like in likes:
            seen.setdefault(like.tflop, []).append(self.seconds_by_turn[like])
        points = sorted((tflop, fmean(seconds)) for tflop, seconds in seen.items())
        return _interpolate(points, turn.tflop) if points else turn.tflop / _TFLOPS


class CostModel:
    """Learns prices from the turns of one device. Whoever measures them is the only writer."""

    def __init__(self) -> None:
        self.table = CostTable()  # replaced whole: whoever reads it needs no lock
        self._seen: dict[TurnKind, deque[float]] = {}

    def set_batch_sizes(self, batch_sizes: Mapping[ModelKey, BatchSize]) -> None:
        """So many samples of these models step together."""
        self.table = replace(self.table, batch_sizes={**self.table.batch_sizes, **batch_sizes})

    def observe(self, turn: TurnKind, seconds: float) -> None:
        """One more turn of this kind counts."""
        known = dict(self.table.seconds_by_turn)
        known.pop(turn, None)  # to come last again
        if len(known) == _KINDS:
            oldest = next(iter(known))
            del known[oldest], self._seen[oldest]
        seen = self._seen.setdefault(turn, deque(maxlen=_REMEMBERED))
        seen.append(seconds)
        known[turn] = clipped_mean(seen)
        self.table = replace(self.table, seconds_by_turn=known)


def clipped_mean(seen: Iterable[float]) -> float:
    """The mean of what was seen, of which nothing counts for more than half as much again as the
    median: a first call, or one that the machine held up, can't spoil it."""
    seen = list(seen)
    most = _MOST * median_low(seen)
    return fmean(min(one, most) for one in seen)


def _interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """On the line between the two points beside `at`; beyond the last one, in proportion to it."""
    above = bisect_left(points, at, key=lambda point: point[0])
    if 0 < above < len(points):
        (low, before), (high, after) = points[above - 1 : above + 1]
        return before + (after - before) * (at - low) / (high - low)
    work, seconds = points[min(above, len(points) - 1)]
    return seconds * at / work if work else seconds
