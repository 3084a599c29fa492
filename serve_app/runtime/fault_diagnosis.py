"""`FaultDiagnosis`: whose fault it is that numbers are not finite, the image's or the replica's."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from serve_app.core.diffusion.extensions import ExtensionKey, ExtensionRef
from serve_app.core.errors import (
    AuraError,
    CallerError,
    EngineFault,
    ModelUnavailable,
    NumericFault,
    OutOfMemory,
    ProfileChanged,
    ReplicaUnwell,
)
from serve_app.runtime.live_sample import DeviceSample
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.stage_model import StageModel

logger = logging.getLogger("aura.engine")

_NEVER = float("inf")
_MIN_PAUSE = 10.0  # seconds between two examinations
_MAX_SHARE = 0.02  # of the device's time that examinations may take
_IN_A_ROW = 3  # failed turns without a step in between, after which
_HASTE = 10  # times as many examinations may be made
_NOTICE = 1.0  # seconds in which the end of its images leaves a process that ends


class FaultDiagnosis:
    """Examines a replica after a fault; the engine's thread is the only writer.

    A self-test on which the model fails makes the replica unwell, for good. Callers' images alone
    never do, and they can't make it spend more than a small share of its time on examinations: the
    faults in between are blamed on the images. While nothing but failures happens the share is
    larger, since a broken replica that fails at once would take more images than any other.

    `on_unwell` ends the process, if it is given. Where turns raise it is called at once: as after a
    crash, images continue from their snapshots, and those that were running are suspects. Where
    numbers are wrong the images are notified before, since their snapshots can't be trusted.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        on_unwell: Callable[[str], None] | None = None,
    ) -> None:
        self._clock, self._pause_for, self._on_unwell = clock, pause, on_unwell
        self._pause_began, self._pause = float("-inf"), 0.0  # before the next examination
        self._failed_turns = 0  # in a row
        self._failure = ""
        self._overflows: dict[ExtensionKey, float] = {}  # the least weight that is known to

    @property
    def unwell(self) -> ReplicaUnwell | None:
        """The error of every image on a replica that is unwell."""
        if not self._failure:
            return None
        return ReplicaUnwell("the replica fails its self-test and is being replaced")

    def check(self) -> None:
        """Raise `EngineFault` if the replica is unwell. Any thread may call this."""
        if self._failure:
            raise EngineFault(f"the self-test fails: {self._failure}")

    def record_step(self) -> None:
        """Take note that a step has succeeded."""
        self._failed_turns = 0

    def diagnose(self, models: ModelCache, sample: DeviceSample, fault: AuraError) -> AuraError:
        """Return the error that ends a sample that failed: `fault`, or the replica's.

        The replica is examined if it may be to blame.
        """
        match fault:
            case CallerError() | ProfileChanged() | ModelUnavailable() | OutOfMemory():
                return fault
            case NumericFault():
                return self._examine(models[sample.model_key], sample, fault)
        self._failed_turns += 1
        if self._may_examine:
            began = self._clock()
            self._test(partial(models.failed_self_test, sample.model_key))
            self._end_examination(began)
            self._end_process()
        return self.unwell or fault

    def end_if_unwell(self) -> None:
        """End the process of a replica that is unwell, when its images know."""
        if self._failure and self._on_unwell:
            self._pause_for(_NOTICE)
            self._end_process()

    def _examine(self, model: StageModel, sample: DeviceSample, fault: NumericFault) -> AuraError:
        """Return the error of a numeric fault: the image's with a remedy, or the replica's.

        A replica that is unwell is not tested again: it might pass, and stays unwell all the same.
        """
        if unwell := self.unwell:
            return unwell
        if self._may_examine:
            began = self._clock()
            self._test(model.failed_self_test)
            if unwell := self.unwell:
                return unwell
            for ref in _overflowing_extensions(model, sample):
                known = self._overflows.get(ref.key, abs(ref.weight))
                self._overflows[ref.key] = min(known, abs(ref.weight))
            self._end_examination(began)
        refs = sample.active_extensions
        culprits = [r for r in refs if abs(r.weight) >= self._overflows.get(r.key, _NEVER)]
        remedy = _remedy(model.profile.dtype, refs, culprits)
        logger.warning("sample %s: %s. %s", sample.id, fault, remedy)
        return NumericFault(fault.problem, remedy=remedy)

    @property
    def _may_examine(self) -> bool:
        haste = _HASTE if self._failed_turns >= _IN_A_ROW else 1
        return not self._failure and self._clock() >= self._pause_began + self._pause / haste

    def _test(self, failed_self_test: Callable[[], str]) -> None:
        self._failure = failed_self_test()
        if self._failure:
            logger.error("this replica fails its self-test: %s", self._failure)

    def _end_process(self) -> None:
        if self._failure and self._on_unwell:
            self._on_unwell(f"the self-test fails: {self._failure}")

    def _end_examination(self, began: float) -> None:
        self._pause_began = self._clock()
        self._pause = max(_MIN_PAUSE, (self._pause_began - began) / _MAX_SHARE)


def _overflowing_extensions(model: StageModel, sample: DeviceSample) -> tuple[ExtensionRef, ...]:
    try:
        return model.overflowing_extensions(sample)
    except Exception:  # out of memory, or a kind of extension that needs more than is made up here
        logger.exception("the extensions of sample %s could not be examined", sample.id)
        return ()


def _names(refs: Iterable[ExtensionRef]) -> str:
    return " and ".join(f"the {ref.key} at weight {ref.weight:g}" for ref in refs)


def _remedy(dtype: str, refs: Sequence[ExtensionRef], culprits: Sequence[ExtensionRef]) -> str:
    """Return what a caller may do about an image whose numbers are not finite."""
    if culprits:
        return _capitalized(f"{_names(culprits)} overflows {dtype}: use a smaller weight")
    parts = [f"try it without {_names(refs)}"] if refs else []
    parts.append("try another seed, less guidance or smaller prompt weights")
    if dtype != "float32":
        parts.append("the service's operator can set MODEL_PRECISION=fp32")
    return _capitalized("; ".join(parts))


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
