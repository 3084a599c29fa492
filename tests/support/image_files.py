"""Image files with the metadata that real tools write, much of it, damaged, or hostile."""

import struct
import zlib
from collections.abc import Iterable
from io import BytesIO

from PIL import Image

from tests.support.request_corpus import WIDTH, chunk, quarters, saved

_AFTER_HEADER = 8 + 25  # bytes: signature and IHDR
_MEGABYTES = bytes(3 * 2**20)


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Return a PNG with more chunks behind its header."""
    return png[:_AFTER_HEADER] + b"".join(chunks) + png[_AFTER_HEADER:]


def with_segments(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """Return a JPEG with more segments, as (marker, content), behind its first bytes."""
    written = (
        bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
        for marker, content in segments
    )
    return jpeg[:2] + b"".join(written) + jpeg[2:]


def with_riff_chunks(webp: bytes, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a WebP with more chunks at its end."""
    body = webp[8:]
    for kind, content in chunks:
        body += kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(*entries: tuple[int, int, int], repeat: int = 1, order: str = "<") -> bytes:
    """Return an EXIF block of (tag, type, value) entries, each repeated."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = struct.pack(f"{order}LH", 8, len(entries) * repeat)
    for tag, kind, value in entries:
        packed = struct.pack(f"{order}{'H' if kind == 3 else 'L'}", value).ljust(4, b"\0")
        body += (struct.pack(f"{order}HHL", tag, kind, 1) + packed) * repeat
    return mark + body + bytes(4)


def itxt(keyword: bytes, text: bytes, *, deflated: bool = False) -> bytes:
    """Return an international text chunk."""
    content = zlib.compress(text) if deflated else text
    return chunk(b"iTXt", keyword + b"\0" + bytes([deflated]) + b"\0\0\0" + content)


def ztxt(keyword: bytes, text: bytes) -> bytes:
    """Return a deflated text chunk."""
    return chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(text))


def _stored_sideways(kind: str) -> bytes:
    """Return the quarters as they lie in a file of orientation 6, without the entry for it."""
    return saved(quarters().transpose(Image.Transpose.ROTATE_90), kind, lossless=True)


def _multi_picture() -> bytes:
    file = BytesIO()
    other = Image.new("RGB", (WIDTH, 32))
    quarters().save(file, "MPO", save_all=True, append_images=[other], quality=95)
    return file.getvalue()


def _wrong_checksum(good: bytes) -> bytes:
    return good[:-1] + bytes([good[-1] ^ 1])


def files_with_metadata() -> dict[str, bytes]:
    """Return files of the quarters, upright, whose metadata is large, odd or damaged."""
    png, jpeg = saved(quarters()), saved(quarters(), "JPEG", quality=95)
    webp = saved(quarters(), "WEBP", lossless=True, icc_profile=b"profile" * 300)
    sideways = tiff((0x0112, 3, 6))
    profile = zlib.compress(_MEGABYTES)
    workflow = b'{"nodes": ["' + b"KSampler " * 400_000 + b'"]}'
    return {
        "PNG with a profile of 3 MB": with_chunks(png, chunk(b"iCCP", b"a\0\0" + profile)),
        "PNG with a workflow of 3 MB": with_chunks(png, itxt(b"workflow", workflow, deflated=True)),
        "PNG with a plain workflow of 3 MB": with_chunks(
            png, chunk(b"tEXt", b"prompt\0" + workflow)
        ),
        "PNG with many deflated texts": with_chunks(png, *[ztxt(b"prompt", bytes(900_000))] * 80),
        "PNG with a bomb for a record": with_chunks(png, ztxt(b"aura", bytes(10**8))),
        "PNG with a bomb for XMP": with_chunks(
            png, itxt(b"XML:com.adobe.xmp", bytes(10**8), deflated=True)
        ),
        "PNG with a damaged profile": with_chunks(png, chunk(b"iCCP", b"a\0\0no zlib")),
        "PNG with damaged numbers": with_chunks(
            png, *[chunk(kind, b"\1") for kind in (b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"acTL")]
        ),
        "PNG with a text of a wrong checksum": with_chunks(
            png, _wrong_checksum(chunk(b"tEXt", b"Software\0GIMP"))
        ),
        "PNG with a text without an end": with_chunks(png, chunk(b"tEXt", b"a" * 200)),
        "PNG with a long EXIF block": with_chunks(
            png, chunk(b"eXIf", tiff((0x010F, 4, 8), repeat=60_000))
        ),
        "PNG with a raw EXIF profile": with_chunks(
            _stored_sideways("PNG"),
            ztxt(
                b"Raw profile type exif",
                b"\nexif\n      34\n" + (b"Exif\0\0" + sideways).hex().encode(),
            ),
        ),
        "PNG without its last chunk": png[:-12],
        "PNG with bytes behind it": png + b"more",
        "JPEG with a profile in 60 segments": with_segments(
            jpeg,
            *[(0xE2, b"ICC_PROFILE\0" + bytes([i, 60]) + bytes(60_000)) for i in range(1, 61)],
        ),
        "JPEG with a long EXIF block": with_segments(
            jpeg, (0xE1, b"Exif\0\0" + tiff((0x010F, 4, 8), repeat=5000))
        ),
        "JPEG with damaged segments": with_segments(
            jpeg,
            (0xE1, b"Exif\0\0II*"),
            (0xE2, b"MPF\0II*\0\1"),
            (0xED, b"Photoshop 3.0\x008BIM\4\4"),
            (0xE5, b""),
            (0xFE, b"made by \xff\xfe"),
        ),
        "JPEG with bytes that fill up": jpeg[:2] + b"\xff" * 9 + jpeg[2:],
        "JPEG of several pictures": _multi_picture(),
        "JPEG with bytes behind it": jpeg + b"more",
        "WebP with a profile of 3 MB, EXIF and XMP": with_riff_chunks(
            webp, [(b"ICCP", _MEGABYTES), (b"EXIF", tiff((1, 3, 1))), (b"XMP ", b"<a/>")]
        ),
        "WebP with unknown chunks": with_riff_chunks(webp, [(b"ABCD", b"odd"), (b"XMP ", b"\xff")]),
        "WebP with EXIF as a JPEG has it": with_riff_chunks(
            saved(
                quarters().transpose(Image.Transpose.ROTATE_90),
                "WEBP",
                lossless=True,
                icc_profile=b"a" * 99,
            ),
            [(b"EXIF", b"Exif\0\0" + sideways)],
        ),
        "WebP with bytes behind it": webp + b"more",
    }
