"""WebP chunks (WebP Container Specification of 2012, in RIFF)."""

from serve_app.ingress.containers.container import Container, KeptRanges, bounded

_HEADER_BYTES = 12
_PIXELS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}
_EXIF, _XMP = b"EXIF", b"XMP "


def is_webp(file: bytes) -> bool:
    """Return whether a file begins as a WebP does."""
    return file[:4] == b"RIFF" and file[8:_HEADER_BYTES] == b"WEBP"


def split(file: bytes) -> Container:
    """Return a WebP in parts. A chunk that reaches beyond the end is left to the decoder.

    The flags of VP8X still announce what was left out; the decoder goes by the chunks.
    """
    kept = KeptRanges(file)
    start, found = _HEADER_BYTES, dict.fromkeys((_EXIF, _XMP), b"")
    announced = 8 + int.from_bytes(file[4:8], "little")
    file_end = min(len(file), announced)
    while start + 8 <= file_end:
        kind, size = file[start : start + 4], int.from_bytes(file[start + 4 : start + 8], "little")
        end = start + 8 + size
        if end > file_end:
            break
        if kind in found and not found[kind]:
            found[kind] = bounded(file[start + 8 : end])
        end = min(end + size % 2, len(file))  # chunks are padded to an even length
        if kind in _PIXELS:
            kept.keep(start, end)
        start = end
    kept.keep(start, len(file))
    pixels, dropped = file, len(file) - _HEADER_BYTES - len(kept)
    if dropped or announced > len(file):
        size = max(file_end - 8 - dropped, 4)
        pixels = kept.joined(b"RIFF", size.to_bytes(4, "little"), b"WEBP")
    return Container(pixels, found[_EXIF].removeprefix(b"Exif\0\0"), found[_XMP])
