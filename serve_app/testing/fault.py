"""`Fault`: what goes wrong at one step of an image, because its prompt asks for it.

A prompt of sleeping replicas may contain `fault:KIND@STEP`, then `xSIZE`, then `*TIMES`:
`fault:kill@17` kills every replica that comes to step 17, `fault:slow@3x10` makes step 3 take ten
times as long, and `fault:hang@12*1` hangs the first replica that comes to step 12 and no other. A
prompt may ask for several faults.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

_FAULT = re.compile(
    r"\bfault:(?P<kind>[a-z]+)@(?P<step>\d+)(?:x(?P<size>\d+(?:\.\d+)?))?(?:\*(?P<times>\d+))?"
)


class FaultKind(StrEnum):
    """What a fault does to its replica or to the image's latents."""

    HANG = "hang"  # the step never returns
    KILL = "kill"  # SIGKILL
    STOP = "stop"  # SIGSTOP, so that nothing of the process runs
    NAN = "nan"  # the network's output is not a number
    SLOW = "slow"  # the step takes `size` times as long
    FAIL = "fail"  # the network raises
    BREAK = "break"  # the network raises, and so does everything after it, as on a broken device
    LEAK = "leak"  # `size` MiB are never freed


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault at one step, counted from 0 as in `Sample.index`."""

    kind: FaultKind
    step: int
    size: float = 1.0
    times: int | None = None  # that it happens to one image; None: always


def parse_faults(prompt: str) -> tuple[Fault, ...]:
    """Return the faults that a prompt asks for; raise `ValueError` for a kind that does not exist.

    It would otherwise be a test without its fault.
    """
    return tuple(map(_fault, _FAULT.finditer(prompt)))


def _fault(match: re.Match[str]) -> Fault:
    size, times = match["size"], match["times"]
    return Fault(
        FaultKind(match["kind"]),
        int(match["step"]),
        float(size) if size else 1.0,
        int(times) if times else None,
    )
