"""`PreviewPace`: which previews of a job a stream sends, so that they are a bounded number."""

from collections import Counter

from serve_app.core.service.job_events import ImageProgress


class PreviewPace:
    """At most `count` previews of each image, evenly over its steps.

    Serve's proxy takes from a replica whatever it sends, and keeps what the client has not read: a
    stream can't know how far its reader is. Without `skips_first` a preview may come before the
    first step is known to be taken.
    """

    def __init__(self, count: int, *, skips_first: bool = False) -> None:
        self._count = count
        self._skipped = int(skips_first)
        self._sent = Counter[int]()  # by image
        self._share: dict[int, float] = {}  # of its steps that an image has taken

    def note(self, progress: ImageProgress) -> None:
        """Take note of how far an image is."""
        outlook = progress.outlook
        self._share[progress.number] = outlook.step / max(1, outlook.of)

    def take(self, number: int) -> int | None:
        """Return the index of the preview that is due of an image, and count it as sent."""
        index = self._sent[number]
        due = (index + self._skipped) / (self._count + self._skipped or 1)
        if index >= self._count or self._share.get(number, 0.0) < due:
            return None
        self._sent[number] += 1
        return index
