"""What the service is at this moment, as plain values: for answers, for /health, for an operator.

Knows no HTTP and no Ray: the conductor fills these in, the ingress shows them.
"""

from dataclasses import dataclass
from enum import StrEnum

from serve_app.core.sizes import SizeRules


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What does not change while the service runs."""

    model: str  # the checkpoint's name: never a path
    refiner: str | None  # the refiner's name, None without one
    native: int  # native side of a picture, pixels
    device: str
    precision: str
    image_count: int  # images per request when the caller does not say
    default_steps: int
    notices: tuple[str, ...] = ()  # warnings that every answer carries

    @property
    def sizes(self) -> SizeRules:
        """The picture sizes that are legal here."""
        return SizeRules(self.native)


class Condition(StrEnum):
    """Whether an image could be made now."""

    READY = "ready"
    LOADING = "loading"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Health:
    """What changes: replicas ready per stage, and GPU seconds owed to what was accepted."""

    condition: Condition
    reason: str  # "" when ready, else one sentence
    replicas: dict[str, int]  # by stage
    owed_seconds: float
