"""JPEG segments (ITU-T T.81, annex B; EXIF 2.3, section 4.7; XMP specification part 3, 1.1.3)."""

from serve_app.ingress.containers.container import Container, KeptRanges

SIGNATURE = b"\xff\xd8\xff"
_EXIF_ID = b"Exif\0\0"
_XMP_ID = b"http://ns.adobe.com/xap/1.0/\0"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_JFIF, _APP1, _ADOBE, _COMMENT = 0xE0, 0xE1, 0xEE, 0xFE
_DECIDES_COLOURS = {_JFIF, _ADOBE}  # whether channels are YCbCr, and CMYK is inverted
_NOT_NEEDED = {*range(0xE0, 0xF0), _COMMENT} - _DECIDES_COLOURS


def split(file: bytes) -> Container:
    """Return a JPEG in parts. What follows anything that is no segment is left to the decoder.

    Leaving out the segment of a multi-picture file (MPF) makes it a plain JPEG of its first
    picture.
    """
    kept = KeptRanges(file)
    kept.keep(0, 2)
    at, exif, xmp = 2, b"", b""
    while file[at : at + 1] == b"\xff":
        while file[at + 1 : at + 2] == b"\xff":  # any number of bytes may fill up
            at += 1
        marker = file[at + 1] if at + 1 < len(file) else _END_OF_IMAGE
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        size = 0 if marker in _STANDALONE else int.from_bytes(file[at + 2 : at + 4])
        end = at + 2 + size
        if (size < 2 and marker not in _STANDALONE) or end > len(file):
            break
        if marker == _APP1:
            content = file[at + 4 : end]
            if not exif and content.startswith(_EXIF_ID):
                exif = content.removeprefix(_EXIF_ID)
            elif not xmp and content.startswith(_XMP_ID):
                xmp = content.removeprefix(_XMP_ID)
        elif marker not in _NOT_NEEDED:
            kept.keep(at, end)
        at = end
    kept.keep(at, len(file))
    return Container(kept.joined(), exif, xmp)
