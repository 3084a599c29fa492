"""The orientation of an image, from its EXIF block or its XMP packet.

Read by hand: Pillow reads every entry of the block, and thousands of entries may each name the
same bytes.
"""

import re
import struct

UPRIGHT = 1
_TAG = 0x0112  # EXIF 2.3, section 4.6.4
_INTEGERS = {1: "B", 3: "H", 4: "L"}  # TIFF 6.0, section 2: BYTE, SHORT, LONG
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_IN_XMP = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")


def orientation_of(exif: bytes, xmp: bytes = b"") -> int:
    """Return the orientation, 1 to 8; `UPRIGHT` where there is none, or it is damaged."""
    in_exif = _in_exif(exif)
    if in_exif is None:
        match = _IN_XMP.search(xmp)
        return int(match[1]) if match else UPRIGHT
    return in_exif if 1 <= in_exif <= 8 else UPRIGHT


def _in_exif(block: bytes) -> int | None:
    """Return the value in the first directory of a TIFF block."""
    order = _BYTE_ORDERS.get(block[:4])
    if order is None or len(block) < 8:
        return None
    (at,) = struct.unpack_from(f"{order}L", block, 4)
    if at + 2 > len(block):
        return None
    (count,) = struct.unpack_from(f"{order}H", block, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(block) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", block, entry)
        if tag == _TAG and kind in _INTEGERS:
            value: int = struct.unpack_from(f"{order}{_INTEGERS[kind]}", block, entry + 8)[0]
            return value
    return None
