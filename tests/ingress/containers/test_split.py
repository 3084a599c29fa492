"""What the parts of image files are, and that no file can make taking one apart fail or grow."""

import random
import tracemalloc
from collections.abc import Iterator

import pytest
from PIL import Image

from serve_app.ingress.containers.container import MAX_METADATA_BYTES
from serve_app.ingress.image_input import split
from tests.support.image_files import (
    files_with_metadata,
    itxt,
    tiff,
    with_chunks,
    with_riff_chunks,
    with_segments,
    ztxt,
)
from tests.support.request_corpus import PICTURES, chunk, quarters, saved

PNG, JPEG = saved(quarters()), saved(quarters(), "JPEG")
WEBP = saved(quarters(), "WEBP", lossless=True, icc_profile=b"profile")
EXIF = tiff((0x0112, 3, 6))
XMP = b"<x:xmpmeta/>"


@pytest.mark.parametrize(
    "file",
    [
        with_chunks(PNG, chunk(b"eXIf", EXIF), itxt(b"XML:com.adobe.xmp", XMP)),
        with_chunks(PNG, itxt(b"XML:com.adobe.xmp", XMP, deflated=True), chunk(b"eXIf", EXIF)),
        with_segments(
            JPEG, (0xE1, b"Exif\0\0" + EXIF), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
        ),
        with_riff_chunks(WEBP, [(b"EXIF", EXIF), (b"XMP ", XMP)]),
    ],
    ids=["PNG", "PNG, deflated", "JPEG", "WebP"],
)
def test_metadata_is_found_and_left_out_of_the_pixels(file: bytes) -> None:
    parts = split(file)
    assert (parts.exif, parts.xmp) == (EXIF, XMP)
    assert split(parts.pixels).pixels is parts.pixels
    assert (split(parts.pixels).exif, split(parts.pixels).xmp) == (b"", b"")
    assert b"profile" not in parts.pixels


def test_a_record_is_read_however_its_text_is_stored() -> None:
    for text in (
        chunk(b"tEXt", b"aura\0{}"),
        ztxt(b"aura", b"{}"),
        itxt(b"aura", b"{}"),
        itxt(b"aura", b"{}", deflated=True),
    ):
        assert split(with_chunks(PNG, text)).record == "{}"


def test_of_two_records_the_first_counts() -> None:
    both = with_chunks(PNG, ztxt(b"aura", b"1"), chunk(b"tEXt", b"aura\x002"))
    assert split(both).record == "1"


@pytest.mark.parametrize("size", [MAX_METADATA_BYTES + 1, 50 * 2**20])
def test_no_more_is_inflated_than_the_limit(size: int) -> None:
    file = with_chunks(
        PNG, *[ztxt(b"aura", bytes(size)), itxt(b"XML:com.adobe.xmp", bytes(size), deflated=True)]
    )
    tracemalloc.start()
    try:
        parts = split(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (parts.record, parts.xmp) == ("", b"")
    assert peak < 6 * MAX_METADATA_BYTES


@pytest.mark.parametrize(
    ("start", "needed", "dropped"),
    [
        (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IDAT\0\0\0\0", b"\0\0\0\0teXt\0\0\0\0"),
        (b"\xff\xd8", b"\xff\xdb\0\2", b"\xff\xfe\0\2"),
        (b"RIFF\0\0\xff\0WEBP", b"VP8 \0\0\0\0", b"ICCP\0\0\0\0"),
    ],
    ids=["PNG", "JPEG", "WebP"],
)
def test_many_small_parts_take_no_more_memory_than_the_file(
    start: bytes, needed: bytes, dropped: bytes
) -> None:
    file = start + (needed + dropped) * 100_000
    tracemalloc.start()
    try:
        parts = split(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(parts.pixels) == len(start) + 100_000 * len(needed)
    assert peak < 3 * len(file)


def test_a_file_without_metadata_is_not_copied() -> None:
    for file in (PNG, JPEG, saved(quarters(), "WEBP"), b"", b"no image", b"RIFF\4\0\0\0WEBP"):
        assert split(file).pixels is file or file is JPEG
    assert len(split(JPEG).pixels) == len(JPEG)


def damaged(files: list[bytes], number: int) -> Iterator[bytes]:
    """Yield files with flipped, removed and repeated bytes."""
    chance = random.Random(11)
    for _ in range(number):
        file = bytearray(chance.choice(files))
        for _ in range(chance.choice((1, 2, 6))):
            at = chance.randrange(len(file) or 1)
            match chance.randrange(4):
                case 0:
                    del file[at : at + chance.randrange(1, 40)]
                case 1:
                    file[at:at] = file[at : at + chance.randrange(1, 40)]
                case _:
                    file[at : at + 1] = bytes([chance.choice((0, 1, 0x7F, 0xFF, at % 256))])
        yield bytes(file)


def test_no_damage_is_an_error() -> None:
    small = [file for file in files_with_metadata().values() if len(file) < 5000]
    small += [file for file, _ in PICTURES.values() if len(file) < 5000]
    assert len(small) > 30
    for file in damaged(small, 6_000):
        parts = split(file)
        assert len(parts.pixels) <= len(file) + 1
        assert max(len(parts.exif), len(parts.xmp)) <= MAX_METADATA_BYTES


def test_the_pixels_of_an_animation_are_its_still_image() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    parts = split(saved(frames[0], save_all=True, append_images=frames[1:]))
    assert not any(kind in parts.pixels for kind in (b"acTL", b"fcTL", b"fdAT"))
