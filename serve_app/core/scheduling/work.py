"""What a turn does: its kind, its plan, and the work left of a sample. No torch, no clock."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import L, Sample, StageSegment


class WorkKind(StrEnum):
    """The kinds of turn. CONDITION, ENCODE and DECODE take one sample at a time."""

    LOAD = "load"  # a model into memory, for all that wait for it
    ATTACH = "attach"  # a LoRA to a model, likewise
    CONDITION = "condition"  # prompt to embeddings; starting noise
    ENCODE = "encode"  # base image to noised latents
    STEP = "step"
    DECODE = "decode"  # latents to pixels


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How many samples of a model step together, and in how many rows.

    `lanes` is the fixed number of rows of every UNet call, or 0 for as many rows as there are.
    """

    images: int
    lanes: int

    def __post_init__(self) -> None:
        if self.images < 1 or (self.lanes and self.lanes < 2):
            raise ValueError("at least one image, and room for its two rows")

    @property
    def rows(self) -> int:
        """The most rows of one UNet call."""
        return self.lanes or 2 * self.images


@dataclass(frozen=True, slots=True)
class Plan(Generic[L]):
    """One turn of GPU work, for samples of one model. `lanes` is how many rows the UNet call has,
    padding included; `load` is the model, or the LoRA, that is to come, and `drop` those that make
    room for it."""

    work: WorkKind
    samples: tuple[Sample[L], ...]
    lanes: int = 0
    load: ModelKey | str | None = None
    evict: tuple[ModelKey | str, ...] = ()


@dataclass(frozen=True, slots=True)
class PendingWork(Generic[L]):
    """What is left of a sample here: its leg, and the work that it waits for next."""

    sample: Sample[L]
    segment: StageSegment
    work: WorkKind
    due: int  # see `policy.choose_batch`

    @property
    def steps_left(self) -> int:
        """Those it still takes."""
        return max(0, self.segment.stop - self.sample.index)
