import base64
import contextlib
import random
import struct
import warnings
import zlib
from io import BytesIO

import pytest
from PIL import Image

from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.errors import InvalidImage
from serve_app.ingress.image_input import (
    FORMATS,
    BaseImage,
    InputFiles,
    load_inputs,
)
from serve_app.ingress.image_input import read_image as read_file
from serve_app.ingress.input_file import InputFile
from tests.support.request_corpus import saved

SDXL = SizeRules(1024)


def read_image(text: str, number: int, sizes: SizeRules) -> BaseImage:
    subject = f"image {number}"
    return read_file(InputFile.of_text(text).take(subject), subject, sizes)


def packed(image: Image.Image, kind: str = "PNG", **options: object) -> str:
    file = BytesIO()
    image.save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def halves() -> Image.Image:
    """Left half red, right half blue, wider than high."""
    image = Image.new("RGB", (512, 256), "red")
    image.paste("blue", (256, 0, 512, 256))
    return image


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("prefix", ["", "data:image/{};base64,"])
def test_three_formats_are_read_bare_or_as_data_uris(kind: str, prefix: str) -> None:
    text = prefix.format(kind.lower()) + packed(halves(), kind)
    image = read_image(text, 0, SDXL)
    assert (image.width, image.height) == (512, 256)
    red, _, blue = Image.frombytes("RGB", (512, 256), image.rgb).getpixel((10, 10))  # type: ignore[misc]
    assert red > 200
    assert blue < 60


def test_line_breaks_in_base64_are_tolerated() -> None:
    text = packed(halves())
    assert read_image("\n".join((text[:50], text[50:])), 0, SDXL).width == 512


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(packed(halves(), "JPEG", exif=exif, quality=95), 0, SDXL)
    upright = {1: (512, 256), 2: (512, 256), 3: (512, 256), 4: (512, 256)}
    assert (image.width, image.height) == upright.get(orientation, (256, 512))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_stands_on_white(mode: str) -> None:
    clear = Image.new(mode, (256, 256), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert set(read_image(packed(clear), 0, SDXL).rgb) == {255}


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I;16"])
def test_other_colours_become_rgb(mode: str) -> None:
    image = Image.new(mode, (256, 256))
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert len(read_image(packed(image, kind), 0, SDXL).rgb) == 256 * 256 * 3


@pytest.mark.parametrize("size", [(1000, 1000), (6000, 2000), (100, 100), (3000, 300)])
def test_a_picture_of_another_size_is_brought_to_a_legal_one(size: tuple[int, int]) -> None:
    image = read_image(packed(Image.new("RGB", size)), 0, SDXL)
    SDXL.check(image.width, image.height)
    assert len(image.rgb) == image.width * image.height * 3


def grey16(value: int) -> str:
    return packed(Image.frombytes("I;16", (256, 256), value.to_bytes(2, "little") * 65536))


@pytest.mark.parametrize(("value", "byte"), [(0, 0), (32768, 128), (65535, 255)])
def test_sixteen_bits_of_grey_become_eight(value: int, byte: int) -> None:
    assert set(read_image(grey16(value), 0, SDXL).rgb) == {byte}


def colours(image: BaseImage, *places: tuple[int, int]) -> list[tuple[int, ...]]:
    opened = Image.frombytes("RGB", (image.width, image.height), image.rgb)
    pixels = [opened.getpixel(place) for place in places]
    assert all(isinstance(pixel, tuple) for pixel in pixels)  # of an RGB image
    return [pixel for pixel in pixels if isinstance(pixel, tuple)]


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize("mode", ResizeMode)
def test_an_image_is_upright_before_its_ratio_counts(mode: ResizeMode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = saved(halves().transpose(Image.Transpose.ROTATE_90), exif=exif)
    image = read_file(file, "image 0", SDXL, (512, 512), mode)
    assert (image.original_size, image.width, image.height) == ((512, 256), 512, 512)
    assert colours(image, (2, 256), (509, 256)) == [RED, BLUE]


def test_each_mode_puts_the_pixels_where_it_says() -> None:
    """Thirds: red, green, blue. Cropping to a square keeps the green one alone."""
    thirds = Image.new("RGB", (768, 256), (0, 255, 0))
    thirds.paste(RED, (0, 0, 256, 256))
    thirds.paste(BLUE, (512, 0, 768, 256))
    thirds.paste((255, 255, 255), (0, 0, 768, 8))  # along the upper edge
    file = saved(thirds)
    crop, pad, stretch = (read_file(file, "image 0", SDXL, (768, 768), mode) for mode in ResizeMode)
    assert colours(crop, (100, 384), (700, 384)) == [(0, 255, 0)] * 2
    assert colours(pad, (100, 384), (700, 384)) == [RED, BLUE]
    assert colours(pad, (100, 2), (100, 200), (100, 765)) == [(255,) * 3, (255,) * 3, RED]
    assert colours(stretch, (100, 384), (700, 384), (100, 765)) == [RED, BLUE, RED]
    assert colours(stretch, (100, 60)) == [RED]  # the white edge is 24 high


@pytest.mark.parametrize("mode", ResizeMode)
@pytest.mark.parametrize("colour", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_takes_every_kind_of_pixel(colour: str, mode: ResizeMode) -> None:
    file = saved(Image.new(colour, (300, 100)), "JPEG" if colour == "CMYK" else "PNG")
    for size in ((256, 512), (1024, 256)):
        image = read_file(file, "image 0", SDXL, size, mode)
        assert len(image.rgb) == size[0] * size[1] * 3
        assert len(set(image.rgb)) == 1


@pytest.mark.parametrize(
    ("size", "target", "numbers"),
    [
        ((4096, 256), None, "50% of its 4096x256 pixels are cut away to fill 2048x256"),
        ((512, 640), (1024, 1024), "20% of its 512x640 pixels are cut away to fill 1024x1024"),
        ((1023, 1001), None, ""),
        ((512, 512), (1024, 1024), ""),
    ],
)
def test_what_is_cut_away_is_a_warning_with_numbers(
    size: tuple[int, int], target: tuple[int, int] | None, numbers: str
) -> None:
    file = saved(Image.new("RGB", size))

    def warnings_of(*mode: ResizeMode) -> tuple[str, ...]:
        return load_inputs(InputFiles(InputFile(file)), 3, SDXL, target, *mode).warnings

    warnings = warnings_of()
    assert len(warnings) == bool(numbers)
    assert all(numbers in warning and "image 3" in warning for warning in warnings)
    for mode in (ResizeMode.PAD, ResizeMode.STRETCH):
        assert warnings_of(mode) == ()


def test_a_prefix_counts_only_in_front() -> None:
    text = packed(halves())
    assert read_image("\n data:image/jpg;base64," + text, 0, SDXL).width == 512
    with pytest.raises(InvalidImage, match="image 0 is neither"):
        read_image(text[:8] + "data:image/png;base64," + text[8:], 0, SDXL)


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_of_a_moving_picture_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (256, 256), colour) for colour in ("white", "black")]
    text = packed(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert set(read_image(text, 0, SDXL).rgb) == {255}


def test_a_broken_orientation_is_the_callers_fault() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    file = base64.b64decode(packed(halves(), "JPEG", exif=exif))
    # orientation's type, 3 (a short), becomes 2 (a text): then Pillow can't write it back
    entry = file.index(b"\x01\x12\x00\x03")
    odd = file[: entry + 3] + b"\x02" + file[entry + 4 :]
    refused_or_read(base64.b64encode(odd).decode())


def refused_or_read(text: str) -> None:
    """Either is fair; any other error would be told as our fault."""
    with contextlib.suppress(InvalidImage):
        read_image(text, 0, SizeRules(64))


def test_no_flipped_byte_is_an_internal_error() -> None:
    chance = random.Random(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    small = halves().resize((64, 32))
    files = [base64.b64decode(packed(small, kind, exif=exif)) for kind in FORMATS]
    for _ in range(3000):
        file = bytearray(chance.choice(files))
        for _ in range(chance.choice((1, 2, 5))):
            file[chance.randrange(min(len(file), 120))] = chance.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in the service, where they are no errors
            refused_or_read(base64.b64encode(file).decode())


def bomb(width: int, height: int) -> str:
    """A PNG header that promises much, with next to nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))
    return base64.b64encode(file + chunk(b"IEND", b"")).decode()


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 10_000), (9000, 100), (5000, 4000)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match=r"image 3 is too large: a side may have at most 8192"):
        read_image(bomb(*size), 3, SDXL)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not base64!",
        base64.b64encode(b"no picture").decode(),
        "data:image/svg+xml;base64,PHN2Zy8+",
        base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
        packed(Image.new("RGB", (300, 300)), "GIF"),
        packed(Image.effect_noise((300, 300), 90))[:2000],
        "http://example.com/a.png",
    ],
    ids=["empty", "letters", "text", "svg uri", "svg", "gif", "truncated", "address"],
)
def test_what_is_no_picture_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage, match="image 0"):
        read_image(text, 0, SDXL)
