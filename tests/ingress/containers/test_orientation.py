import random

import pytest

from serve_app.ingress.containers.orientation import UPRIGHT, orientation_of
from tests.support.image_files import tiff

MAKE, ORIENTATION = 0x010F, 0x0112
SHORT, LONG = 3, 4


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [SHORT, LONG])
@pytest.mark.parametrize("value", range(1, 9))
def test_it_is_read_in_both_byte_orders_behind_other_entries(
    value: int, kind: int, order: str
) -> None:
    block = tiff((MAKE, LONG, 0), (ORIENTATION, kind, value), order=order)
    assert orientation_of(block) == value


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        tiff((ORIENTATION, SHORT, 9)),
        tiff((ORIENTATION, 2, 6)),
        tiff((MAKE, SHORT, 6)),
        tiff((ORIENTATION, SHORT, 6))[:14],
    ],
)
def test_a_damaged_one_is_upright(block: bytes) -> None:
    assert orientation_of(block) == UPRIGHT


def test_xmp_counts_where_exif_says_nothing() -> None:
    for text in (b'<a tiff:Orientation="6"/>', b"<tiff:Orientation>6</tiff:Orientation>"):
        assert orientation_of(b"", text) == 6
        assert orientation_of(tiff((ORIENTATION, SHORT, 3)), text) == 3


def test_no_flipped_byte_is_an_error() -> None:
    chance = random.Random(5)
    good = tiff((MAKE, LONG, 0), (ORIENTATION, SHORT, 6))
    for _ in range(5000):
        block = bytearray(good)
        for _ in range(chance.choice((1, 2, 4))):
            block[chance.randrange(len(block))] = chance.randrange(256)
        assert 1 <= orientation_of(bytes(block)) <= 8
