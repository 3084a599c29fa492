"""`StepKind`: what the network computes for one sample at one step, which may differ by step.

Outside its guidance interval (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval
Improves Sample and Distribution Quality in Diffusion Models") a sample needs no negative row. With
DeepCache (Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free") most steps compute
the outermost layers alone, on deep features that an earlier step has left. Both follow from the
spec, the schedule and the step's index and from nothing else, so that an image is the same in any
company and after any resume.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from serve_app.core.diffusion.schedule import Schedule
from serve_app.core.diffusion.spec import ImageSpec, Stage, StepCache

# Every so many evaluations the deep features are made anew: the paper's N, and `cache_interval` of
# the package `DeepCache`, whose examples for SDXL have 3. Whoever changes it changes `ARITHMETIC`.
CACHE_INTERVAL = 3


class StepKind(NamedTuple):
    """The work of one sample at one step: the rows of the UNet, and whether they are shallow."""

    rows: int
    shallow: bool = False  # it reuses deep features


def step_kind(spec: ImageSpec, schedule: Schedule, stage: Stage, index: int) -> StepKind:
    """Return the kind of step `index`, which runs at this stage."""
    guided = is_guided_at(spec, schedule, index)
    return StepKind(2 if guided else 1, _is_shallow(spec, schedule, stage, index))


def step_kinds(
    spec: ImageSpec, schedule: Schedule, stage: Stage, start: int, stop: int
) -> Iterator[tuple[StepKind, int]]:
    """Yield the kinds of the steps from `start` to before `stop`, each with how many come in a row.

    All of them run at this stage.
    """
    if spec.guidance_interval is None and spec.cache is StepCache.OFF:
        if start < stop:
            yield StepKind(spec.rows), stop - start
        return
    kinds = (step_kind(spec, schedule, stage, index) for index in range(start, stop))
    for kind, equal in groupby(kinds):
        yield kind, sum(1 for _ in equal)


def is_guided_at(spec: ImageSpec, schedule: Schedule, index: int) -> bool:
    """Return whether a step has classifier-free guidance: where low < sigma <= high.

    Sigma is the noise level at which the step evaluates the network, as in the paper and in
    k-diffusion.
    """
    if not spec.is_guided or spec.guidance_interval is None:
        return spec.is_guided
    low, high = spec.guidance_interval
    return low < schedule.sigmas[index] <= high


def _is_shallow(spec: ImageSpec, schedule: Schedule, stage: Stage, index: int) -> bool:
    """Return whether a step reuses the features of the last step of this stage that did not.

    A step that needs a negative row after one that had none is never shallow: there are no features
    of that row.
    """
    if spec.cache is StepCache.OFF or index >= len(schedule):
        return False
    first = schedule.start_index if stage is Stage.BASE else schedule.handoff_index
    if (index - first) % CACHE_INTERVAL == 0:
        return False
    return is_guided_at(spec, schedule, index - 1) or not is_guided_at(spec, schedule, index)
