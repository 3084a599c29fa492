"""`ParkedImages`: snapshots of images that nobody works at, for whoever takes up their jobs.

No replicas and no clock: the caller passes the time, in seconds.
"""

from dataclasses import dataclass

from serve_app.core.service.tasks import ImageSnapshot

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

    def put(self, snapshot: ImageSnapshot, now: float) -> None:
        """Keep a snapshot in place of an earlier one of its image; the oldest make room."""
        self.pop(snapshot.sample.id)
        parked = _Parked(snapshot, _size(snapshot), now)
        self._parked[snapshot.sample.id] = parked
        self._bytes += parked.bytes
        self.forget(now)
        while self._bytes > self._max_bytes:
            self.pop(next(iter(self._parked)))

    def pop(self, id: str) -> ImageSnapshot | None:
        """Return an image's snapshot, which is kept no more."""
        parked = self._parked.pop(id, None)
        if parked is None:
            return None
        self._bytes -= parked.bytes
        return parked.snapshot

    def forget(self, now: float) -> None:
        """Drop what has been kept for too long."""
        while self._parked:
            id, oldest = next(iter(self._parked.items()))
            if now - oldest.time <= MAX_PARKED_SECONDS:
                return
            self.pop(id)


def _size(snapshot: ImageSnapshot) -> int:
    """Return the bytes of a snapshot's arrays and PNG, beside which the rest is small."""
    sample = snapshot.sample
    arrays = (latents for latents in (sample.latents, *sample.solver_state) if latents is not None)
    files = (sample.inputs.init_image, snapshot.png)
    return sum(int(array.nbytes) for array in arrays) + sum(len(file or b"") for file in files)
