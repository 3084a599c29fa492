"""`ParkedImages`: snapshots of images that nobody works at, for whoever takes up their jobs.

No replicas and no clock: the caller passes the time, in seconds.
"""

from dataclasses import dataclass, replace

from serve_app.core.service.tasks import ImageSnapshot, gravest

MAX_PARKED_BYTES = 64 * 2**20  # about 150 images of 1024 x 1024 pixels on their way
MAX_PARKED_SECONDS = 600.0  # as long as the results of a job are kept


@dataclass(frozen=True, slots=True)
class _Parked:
    snapshot: ImageSnapshot
    bytes: int
    time: float


class ParkedImages:
    """The newest snapshots, by the image's id, as many as fit in `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_PARKED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._parked: dict[str, _Parked] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._parked)

    def get(self, id: str) -> ImageSnapshot | None:
        """Return an image's snapshot, if there is one."""
        parked = self._parked.get(id)
        return None if parked is None else parked.snapshot

    def put(self, snapshot: ImageSnapshot, now: float) -> None:
        """Keep a snapshot, or the one of more steps, with the gravest suspicion of the two.

        The oldest make room.
        """
        if (known := self.get(snapshot.sample.id)) is not None:
            furthest = max(snapshot, known, key=lambda found: found.steps_done)
            snapshot = replace(furthest, suspicion=gravest([snapshot, known]))
        self._pop(snapshot.sample.id)
        parked = _Parked(snapshot, _size(snapshot), now)
        self._parked[snapshot.sample.id] = parked
        self._bytes += parked.bytes
        self.forget(now)
        while self._bytes > self._max_bytes:
            self._pop(next(iter(self._parked)))

    def drop_older(self, snapshot: ImageSnapshot) -> None:
        """Drop what is kept of an image, unless it is of more steps than a snapshot at work."""
        known = self.get(snapshot.sample.id)
        if known is not None and known.steps_done <= snapshot.steps_done:
            self._pop(snapshot.sample.id)

    def forget(self, now: float) -> None:
        """Drop what has been kept for too long."""
        while self._parked:
            id, oldest = next(iter(self._parked.items()))
            if now - oldest.time <= MAX_PARKED_SECONDS:
                return
            self._pop(id)

    def _pop(self, id: str) -> None:
        if parked := self._parked.pop(id, None):
            self._bytes -= parked.bytes


def _size(snapshot: ImageSnapshot) -> int:
    """Return the bytes of a snapshot's arrays and PNG, beside which the rest is small."""
    sample = snapshot.sample
    arrays = (latents for latents in (sample.latents, *sample.solver_state) if latents is not None)
    files = (sample.inputs.init_image, snapshot.png)
    return sum(int(array.nbytes) for array in arrays) + sum(len(file or b"") for file in files)
