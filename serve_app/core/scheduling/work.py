"""What a turn does: its kind, its plan, and the work left of a sample. No torch, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Generic

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import L, Sample, StageSegment


class WorkKind(StrEnum):
    """The kinds of turn. CONDITION, ENCODE and DECODE work on one sample at a time."""

    LOAD = "load"  # a model into memory, for all samples that wait for it
    ATTACH = "attach"  # an extension to a model, likewise
    CONDITION = "condition"  # prompt to embeddings; starting noise
    ENCODE = "encode"  # initial image to noised latents
    STEP = "step"
    DECODE = "decode"  # latents to pixels


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How many guided samples of a model step together, and in how many rows.

    A sample without guidance, or at a step outside its guidance interval, needs one row, so up to
    twice as many of these step together.
    In strict mode every UNet call has one of `lane_counts` rows, padding included: the numbers of
    rows, smallest first, between which a sample's bits don't change. In fast mode there are none,
    and a call has as many rows as its samples need. Raises `ValueError` without room for one guided
    image, or if the counts don't ascend.
    """

    images: int
    lane_counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.images < 1 or self.rows < 2:
            raise ValueError(f"at least one image and its two rows must fit, got {self}")
        if any(a >= b for a, b in pairwise((0, *self.lane_counts))):
            raise ValueError(f"the lane counts must ascend from 1, got {self}")

    @property
    def sample_rows(self) -> int:
        """The maximum number of rows of one UNet call that belong to samples."""
        return min(2 * self.images, self.rows)

    @property
    def rows(self) -> int:
        """The maximum number of rows of one UNet call, padding included."""
        return self.lane_counts[-1] if self.lane_counts else 2 * self.images

    def lanes(self, rows: int) -> int:
        """Return the rows of a UNet call for samples with `rows` rows: the fewest that hold them.

        Raises `ValueError` when there are too many.
        """
        if rows > self.rows:
            raise ValueError(f"{rows} rows do not fit in {self}")
        return next((count for count in self.lane_counts if count >= rows), rows)


def share_by_rows(rows: Sequence[int], seconds: float) -> list[float]:
    """Return the GPU time of each image of a turn: the turn's seconds, shared by the images' rows.

    This is what GPU time means here, measured or predicted. Padding belongs to no image, so the
    images of the batch pay for it, and all images together pay for the time the device was busy.
    """
    total = sum(rows)
    return [seconds * own / total for own in rows]


@dataclass(frozen=True, slots=True)
class Plan(Generic[L]):
    """One turn of GPU work, for samples of one model.

    `lanes` is the number of rows of the UNet call, padding included. `load` is the model to load
    or the extension to attach, and `evict` what leaves memory for it. `alone`: its one sample is in
    quarantine.
    """

    work: WorkKind
    samples: tuple[Sample[L], ...]
    lanes: int = 0
    load: ModelKey | ExtensionKey | None = None
    evict: tuple[ModelKey, ...] | tuple[ExtensionKey, ...] = ()
    alone: bool = False


@dataclass(frozen=True, slots=True)
class PendingWork(Generic[L]):
    """What is left of a sample on this replica: its segment, and the work that it waits for."""

    sample: Sample[L]
    segment: StageSegment
    work: WorkKind
    due: int  # a turn; see `choose_batch`

    @property
    def steps_left(self) -> int:
        """The number of steps up to the end of the segment."""
        return max(0, self.segment.stop - self.sample.index)


@dataclass(frozen=True, slots=True)
class Rotation:
    """What ran last where work alternates: steps with other work, and decodes with loads."""

    stepped: bool = False
    decoded: bool = False

    def next(self, work: WorkKind) -> "Rotation":
        """Return the rotation after a turn of this kind. Prompts don't take part."""
        if work is WorkKind.CONDITION:
            return self
        if work is WorkKind.STEP:
            return Rotation(stepped=True, decoded=self.decoded)
        return Rotation(stepped=False, decoded=work is WorkKind.DECODE)
