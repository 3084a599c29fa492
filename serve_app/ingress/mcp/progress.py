"""`ProgressNotes`: what a client hears of a call that is not done yet."""

from typing import Protocol

from serve_app.core.service.outlook import Outlook


class ProgressChannel(Protocol):
    """What takes notes to a client: a session of the SDK."""

    async def report_progress(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Send a note, if the client has asked for notes."""


class ProgressNotes:
    """Notes of how far a job is, in steps of all its images; each higher than the last one.

    An image that waits has a part of its first step, the more the fewer are before it, so that
    each place that it gains is a note. `images` is None where nobody knows how many there are. A
    note names the job: a client that waits no longer can ask for it, or cancel it.
    """

    def __init__(self, channel: ProgressChannel, job: str, images: int | None = None) -> None:
        self._channel = channel
        self._job = job
        self._images = images
        self._done: dict[int, float] = {}  # steps, by image
        self._last = -1.0

    async def add(self, number: int, outlook: Outlook) -> None:
        """Send a note of an image's progress, unless the client has heard of as much.

        Without a progress token in its message it hears of nothing.
        """
        waiting = 1 / (outlook.position + 1) if outlook.position else 0
        self._done[number] = outlook.step + waiting
        done = sum(self._done.values())
        if done > self._last:
            self._last = done
            image = "" if self._images == 1 else f", image {number}"
            message = f"job {self._job}{image}: {progress_text(outlook)}"
            total = None if self._images is None else outlook.of * self._images
            await self._channel.report_progress(done, total, message)


def progress_text(outlook: Outlook) -> str:
    """Return how far an image is, in words."""
    if outlook.position:
        taken = f"step {outlook.step} of {outlook.of}, " if outlook.step else ""
        return f"{taken}waits for {outlook.stage} as number {outlook.position}"
    left = "" if outlook.eta is None else f", about {outlook.eta:.0f} s left"
    return f"step {outlook.step} of {outlook.of}{left}"
