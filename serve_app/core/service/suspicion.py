"""`Suspicion`: whether an image kills the replicas that work on it. No clock and no replicas.

A replica that dies takes a whole batch with it, and only one image of it may be at fault, or none:
machines lose power, and operators end processes. So the first death convicts nobody. It makes
suspects of the images that may have been on the device, each of which then runs alone for a few
steps, in quarantine. An image whose replica dies while it runs alone has killed it.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from serve_app.core.service.events import (
    Accepted,
    Preview,
    Progress,
    Queued,
    SegmentDone,
    Snapshot,
    StageEvent,
)

MAX_DEATHS = 5  # of replicas that had the image, over its life


class Place(StrEnum):
    """Where an image is, as far as its replica has reported."""

    SENT = "sent"  # nothing was reported yet
    WAITING = "waiting"
    RUNNING = "running"
    ALONE = "alone"  # in quarantine


class Loss(StrEnum):
    """How a replica was lost."""

    DIED = "died"
    HUNG = "hung"  # a turn does not end, by the replica's own report
    SILENT = "silent"  # it may be stopped, or cut off


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is known against one image. Each method returns the state after something happened."""

    deaths: int = 0  # replicas lost that had the image
    suspected: int = 0  # those of them in which it may have been on the device
    place: Place = Place.SENT
    is_suspect: bool = False  # it has to run alone for a while
    is_convicted: bool = False

    @property
    def is_exhausted(self) -> bool:
        """Whether the image has been on so many lost replicas that it must end."""
        return self.deaths >= MAX_DEATHS

    @property
    def quarantine(self) -> int:
        """How many times the usual steps it has to run alone: twice as many each time."""
        return 2 ** max(0, self.suspected - 1) if self.is_suspect else 0

    def after_sending(self) -> "Suspicion":
        """Return the state when the image is sent to a replica, which has reported nothing yet."""
        return replace(self, place=Place.SENT)

    def after_event(self, event: StageEvent) -> "Suspicion":
        """Return the state after an event of the image's stream.

        What follows the steps alone clears the image: it waits again, runs beside others, or its
        segment is done.
        """
        match event:
            case Progress(alone=True):
                return replace(self, place=Place.ALONE)
            case Accepted() | Preview() | Snapshot():
                return self
            case Queued():
                place = Place.WAITING
            case Progress() | SegmentDone():
                place = Place.RUNNING
            case _:
                assert_never(event)
        cleared = self.place is Place.ALONE
        return replace(self, place=place, is_suspect=self.is_suspect and not cleared)

    def after_loss(self, loss: Loss) -> "Suspicion":
        """Return the state after the replica was lost.

        An image that was known to wait is no suspect. Silence convicts nobody, since the replica
        may go on, and its network or its machine may be at fault.
        """
        convicts = self.place is Place.ALONE and loss is not Loss.SILENT
        was_there = self.place is not Place.WAITING
        return replace(
            self,
            deaths=self.deaths + 1,
            suspected=self.suspected + (was_there and loss is not Loss.SILENT),
            is_suspect=self.is_suspect or was_there,
            is_convicted=convicts,
        )
