"""`Container`: what an image file holds, apart from its pixels' encoding.

Colour profiles, thumbnails, workflows and comments are not needed for the pixels, and decoders
refuse files whose metadata they find too long or damaged. So the parts without pixels are left out
before a file is decoded, and those that matter here are read within bounds.
"""

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
    """The ranges of a file that stay, in order.

    All but the last are copied together: a list of them could take many times the file's memory.
    """

    def __init__(self, file: bytes) -> None:
        self._file = file
        self._copy = bytearray()  # the ranges before the last
        self._start = self._end = 0  # of the last

    def keep(self, start: int, end: int) -> None:
        """Keep the bytes from `start` to `end`, which lie behind all that are kept already."""
        if start != self._end:
            self._copy += self._last()
            self._start = start
        self._end = end

    def joined(self, *before: bytes) -> bytes:
        """Return the kept bytes behind others; the file itself, uncopied, if it is all kept."""
        if not before and len(self) == len(self._file):
            return self._file
        return b"".join([*before, self._copy, self._last()])

    def __len__(self) -> int:
        return len(self._copy) + self._end - self._start

    def _last(self) -> memoryview:
        return memoryview(self._file)[self._start : self._end]


def bounded(data: bytes) -> bytes:
    """Return metadata unless it is too long to be read."""
    return data if len(data) <= MAX_METADATA_BYTES else b""
