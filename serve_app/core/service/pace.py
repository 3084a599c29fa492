"""`Pace`: how fast an image steps, as measured against the cost model. A value without a clock."""

from dataclasses import dataclass

_MARKS = 8  # steps that are remembered: a pace follows the load within so many reports


@dataclass(frozen=True, slots=True)
class Pace:
    """When an image was about to take which of its steps, newest last.

    A mark is a time in seconds, and what the cost model says of all steps before it.
    """

    marks: tuple[tuple[float, float], ...] = ()

    def after(self, now: float, predicted: float) -> "Pace":
        """Return the pace when the image is about to take another step.

        `predicted` are the predicted seconds of all steps before it. A pace begins anew where an
        image goes back, as after the loss of its replica.
        """
        marks = self.marks
        if marks and predicted <= marks[-1][1]:
            marks = ()
        return Pace((*marks, (now, predicted))[-_MARKS:])

    @property
    def factor(self) -> float | None:
        """How many times as long as predicted the steps take; None before one was taken.

        The oldest interval counts only while there is no other: the first step of an image may pay
        for memory and kernels that the later ones find ready.
        """
        if len(self.marks) < 2:
            return None
        oldest = self.marks[1] if len(self.marks) > 2 else self.marks[0]
        (began, first), (now, last) = oldest, self.marks[-1]
        return (now - began) / (last - first)

    def since(self, now: float) -> float:
        """Return the seconds since the newest mark; 0 without one."""
        return max(0.0, now - self.marks[-1][0]) if self.marks else 0.0
