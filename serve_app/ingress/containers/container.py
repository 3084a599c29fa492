"""`Container`: what an image file holds, apart from its pixels' encoding.

Colour profiles, thumbnails, workflows and comments are not needed for the pixels, and decoders
refuse files whose metadata they find too long or damaged. So the parts without pixels are left out
before a file is decoded, and those that matter here are read within bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_METADATA_BYTES = 512 * 1024  # of one XMP packet, EXIF block or text, after decompression


@dataclass(frozen=True, slots=True)
class Container:
    """An image file in parts. Nothing is validated; absent or too long metadata is empty.

    `pixels` is a file that decodes to the same pixels, without metadata. `exif` is a TIFF block,
    `xmp` an XML packet and `record` the text of our own PNG chunk.
    """

    pixels: bytes
    exif: bytes = b""
    xmp: bytes = b""
    record: str | None = None


class KeptRanges:
    """The ranges of a file that stay, in order. Neighbours are merged, so the list is short."""

    def __init__(self, file: bytes) -> None:
        self._file = file
        self._ranges: list[tuple[int, int]] = []

    def keep(self, start: int, end: int) -> None:
        """Keep the bytes from `start` to `end`, which lie behind all that are kept already."""
        if self._ranges and self._ranges[-1][1] == start:
            start = self._ranges.pop()[0]
        self._ranges.append((start, end))

    def joined(self, *before: bytes) -> bytes:
        """Return the kept bytes behind others; the file itself, uncopied, if it is all kept."""
        if not before and self._ranges == [(0, len(self._file))]:
            return self._file
        return b"".join([*before, *self._views()])

    def __len__(self) -> int:
        return sum(end - start for start, end in self._ranges)

    def _views(self) -> Sequence[memoryview]:
        view = memoryview(self._file)
        return [view[start:end] for start, end in self._ranges]


def bounded(data: bytes) -> bytes:
    """Return metadata unless it is too long to be read."""
    return data if len(data) <= MAX_METADATA_BYTES else b""
