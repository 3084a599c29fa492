"""Bodies and image files as real callers and attackers send them.

The PNG writer here is our own: Pillow writes neither 16-bit colours nor broken files.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from io import BytesIO
from typing import Any

from PIL import Image

COLOURS = ((230, 30, 30), (30, 200, 30), (30, 30, 220), (240, 220, 40))  # quarters, row by row
WIDTH, HEIGHT = 96, 64
_LARGEST = 4096  # pixels of each side


def quarters(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return an image that differs from each of its rotations and mirror images."""
    image = Image.new("RGB", (width, height))
    for i, colour in enumerate(COLOURS):
        left, top = (i % 2) * width // 2, (i // 2) * height // 2
        image.paste(colour, (left, top, left + width // 2, top + height // 2))
    return image


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the image as a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """Return a PNG of raw rows, each without its filter byte."""
    length = len(rows) // height if height else 0
    lines = b"".join(b"\0" + rows[i * length : (i + 1) * length] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def _deep(
    channels: Callable[[tuple[int, int, int]], tuple[int, ...]], colour: int, *more: bytes
) -> bytes:
    """Return the quarters with 16 bits a channel, the lower eight of them noise."""
    rows = b"".join(
        bytes(byte for value in channels(shade) for byte in (value, 0x5A))
        for shade in _pixels(quarters())
    )
    return png(WIDTH, HEIGHT, 16, colour, rows, *more)


def _pixels(image: Image.Image) -> Iterator[tuple[int, int, int]]:
    """Yield the colours of an RGB image, row by row."""
    colours = image.tobytes()
    yield from zip(colours[::3], colours[1::3], colours[2::3], strict=True)


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """Return the quarters as a camera stores them; `orientation` turns them upright again."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters()
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(stored, kind, exif=exif, quality=95)


def _with_alpha() -> Image.Image:
    """Return the quarters with the last one transparent, which is white on white."""
    image = quarters().convert("RGBA")
    image.putalpha(255)
    image.paste((10, 10, 10, 0), (WIDTH // 2, HEIGHT // 2, WIDTH, HEIGHT))
    return image


def _keyed() -> bytes:
    """Return an 8-bit PNG with one colour declared transparent."""
    red, green, blue = COLOURS[3]
    key = chunk(b"tRNS", struct.pack(">HHH", red, green, blue))
    return png(WIDTH, HEIGHT, 8, 2, quarters().tobytes(), key)


def _palette(*, alpha: bool) -> bytes:
    image = Image.new("P", (WIDTH, HEIGHT))
    image.putpalette([shade for colour in COLOURS for shade in colour])
    for i in range(4):
        left, top = (i % 2) * WIDTH // 2, (i // 2) * HEIGHT // 2
        image.paste(i, (left, top, left + WIDTH // 2, top + HEIGHT // 2))
    return saved(image, transparency=bytes([255, 255, 255, 0])) if alpha else saved(image)


def grey(colour: tuple[int, int, int]) -> int:
    """Return a colour's lightness as Pillow computes it (ITU-R 601-2)."""
    red, green, blue = colour
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _grey_key(colour: tuple[int, int, int]) -> bytes:
    return chunk(b"tRNS", bytes((grey(colour), 0x5A)))


def _colour_key(colour: tuple[int, int, int]) -> bytes:
    return chunk(b"tRNS", bytes(byte for value in colour for byte in (value, 0x5A)))


WHITE = (255, 255, 255)
_ON_WHITE = (*COLOURS[:3], WHITE)
_GREY = tuple((grey(c),) * 3 for c in COLOURS)
_OTHER = Image.new("RGB", (WIDTH, HEIGHT), "black")

PICTURES: dict[str, tuple[bytes, tuple[tuple[int, int, int], ...]]] = {  # file, its quarters
    "PNG": (saved(quarters()), COLOURS),
    "JPEG": (saved(quarters(), "JPEG", quality=95), COLOURS),
    "progressive JPEG": (saved(quarters(), "JPEG", quality=95, progressive=True), COLOURS),
    "WebP": (saved(quarters(), "WEBP", lossless=True), COLOURS),
    "CMYK JPEG": (saved(quarters().convert("CMYK"), "JPEG", quality=95), COLOURS),
    "grey JPEG": (saved(quarters().convert("L"), "JPEG", quality=95), _GREY),
    "grey": (saved(quarters().convert("L")), _GREY),
    "one bit": (
        saved(quarters().convert("L").point(lambda s: 255 if s > 100 else 0).convert("1")),
        tuple((255,) * 3 if grey(c) > 100 else (0,) * 3 for c in COLOURS),
    ),
    "16 bits of grey": (_deep(lambda c: (grey(c),), 0), _GREY),
    "16 bits of grey, alpha": (
        _deep(lambda c: (grey(c), 0 if c == COLOURS[3] else 255), 4),
        (*_GREY[:3], WHITE),
    ),
    "16 bits of colour": (_deep(lambda c: c, 2), COLOURS),
    "16 bits of colour, alpha": (
        _deep(lambda c: (*c, 0 if c == COLOURS[3] else 255), 6),
        _ON_WHITE,
    ),
    "16 bits of grey, one transparent": (
        _deep(lambda c: (grey(c),), 0, _grey_key(COLOURS[3])),
        (*_GREY[:3], WHITE),
    ),
    "16 bits of colour, one transparent": (
        _deep(lambda c: c, 2, _colour_key(COLOURS[3])),
        _ON_WHITE,
    ),
    "palette": (_palette(alpha=False), COLOURS),
    "palette, alpha": (_palette(alpha=True), _ON_WHITE),
    "alpha": (saved(_with_alpha()), _ON_WHITE),
    "grey, alpha": (saved(_with_alpha().convert("LA")), (*_GREY[:3], WHITE)),
    "a transparent colour": (_keyed(), _ON_WHITE),
    "WebP, alpha": (saved(_with_alpha(), "WEBP", lossless=True), _ON_WHITE),
    "APNG": (saved(quarters(), save_all=True, append_images=[_OTHER], duration=50), COLOURS),
    "APNG behind a still": (
        saved(quarters(), save_all=True, append_images=[_OTHER], default_image=True),
        COLOURS,
    ),
    "animated WebP": (
        saved(quarters(), "WEBP", save_all=True, append_images=[_OTHER], lossless=True),
        COLOURS,
    ),
    **{f"orientation {i}": (turned(i), COLOURS) for i in range(1, 9)},
    **{f"orientation {i} in a WebP": (turned(i, "WEBP"), COLOURS) for i in (3, 6)},
    **{f"orientation {i} in a PNG": (turned(i, "PNG"), COLOURS) for i in (5, 8)},
}

_NOISE = saved(Image.effect_noise((300, 300), 90))
_SVG = b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"


def _webp_canvas(side: int) -> bytes:
    """Return an extended WebP whose header claims a canvas of `side` pixels a side."""
    size = (side - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + size
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    frame = bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4)
    still = saved(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    body += b"ANMF" + struct.pack("<I", len(frame) + len(still)) + frame + still
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _jpeg_promise(width: int, height: int) -> bytes:
    """Return a JPEG whose header claims another size."""
    file = bytearray(saved(quarters(), "JPEG"))
    at = file.index(b"\xff\xc0") + 5
    file[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(file)


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    """Return files, each with a part of the message that refuses it."""
    unreadable, large = "is not a readable PNG, JPEG or WebP", "too large"
    return {
        "empty": (b"", unreadable),
        "text": (b"no picture", unreadable),
        "a PNG's first 20 bytes": (_NOISE[:20], unreadable),
        "truncated PNG": (_NOISE[: len(_NOISE) // 2], unreadable),
        "truncated JPEG": (saved(quarters(900, 900), "JPEG")[:700], unreadable),
        "truncated WebP": (saved(quarters(), "WEBP", lossless=True)[:60], unreadable),
        "PNG of no rows": (png(0, 0, 8, 2, b""), unreadable),
        "PNG of 2³¹ columns": (png(2**31 - 1, 1, 8, 2, b"\0"), large),
        "50k x 50k header": (png(50_000, 50_000, 8, 2, b""), large),
        "9000² bomb": (png(9000, 9000, 8, 2, bytes(9000 * 9000 * 3)), large),
        "8192 x 2051": (png(8192, 2051, 1, 0, bytes(1024 * 2051)), large),
        "8193 x 1": (png(8193, 1, 8, 0, bytes(8193)), large),
        "a WebP's canvas of 16384²": (_webp_canvas(16384), large),
        "a JPEG's header of 65535²": (_jpeg_promise(65535, 65535), large),
        "SVG": (_SVG, unreadable),
        "GIF": (saved(quarters(), "GIF"), unreadable),
        "BMP": (saved(quarters(), "BMP"), unreadable),
        "TIFF": (saved(quarters(), "TIFF"), unreadable),
        "ICO": (saved(quarters(), "ICO"), unreadable),
        "PDF": (saved(quarters(), "PDF"), unreadable),
        "a checksum that is wrong": (
            saved(quarters()).replace(b"IDAT", b"IDAX", 1),
            unreadable,
        ),
    }


def limit_pictures() -> dict[str, bytes]:
    """Return the largest legal images, of every kind that needs memory of its own."""
    side = _LARGEST
    plain = Image.new("RGB", (side, side), COLOURS[0])
    return few_limit_pictures() | {
        "JPEG": saved(plain, "JPEG"),
        "WebP": saved(plain, "WEBP", method=0),
        "alpha": saved(plain.convert("RGBA"), compress_level=1),
        "grey, alpha": saved(plain.convert("LA"), compress_level=1),
        "palette, alpha": saved(plain.convert("P"), compress_level=1, transparency=bytes(256)),
        "CMYK": saved(plain.convert("CMYK"), "JPEG"),
        "16 bits of grey": png(side, side, 16, 0, bytes(side * side * 2)),
        "16 bits of colour, alpha": png(side, side, 16, 6, bytes(side * side * 8)),
        "profile of 12 MB": png(
            side, side, 8, 2, plain.tobytes(), chunk(b"iCCP", b"a\0\0" + bytes(12 * 2**20))
        ),
        "lying": saved(plain, "JPEG", exif=_lying()),
        "animated WebP": saved(
            plain, "WEBP", save_all=True, append_images=[plain.rotate(90)], method=0
        ),
        "8192 long": saved(Image.new("RGBA", (8192, 2050)), compress_level=1),
    }


def few_limit_pictures() -> dict[str, bytes]:
    """Return the plainest of the largest legal images, and the one that needs most memory."""
    plain = Image.new("RGB", (_LARGEST, _LARGEST), COLOURS[0])
    key = chunk(b"tRNS", struct.pack(">HHH", *COLOURS[0]))
    return {
        "colour": saved(plain, compress_level=1),
        "a transparent colour": png(_LARGEST, _LARGEST, 8, 2, plain.tobytes(), key),
    }


def _lying() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@lru_cache(1)  # they take 80 MB and a third of a second
def bad_bodies(route: str) -> dict[str, tuple[bytes, str]]:
    """Return bodies that are wrong in one thing, each with the code of its error."""
    fine: dict[str, Any] = {"prompt": "a"}
    if route == "/refine":
        fine["images"] = ["aGVsbG8="]
    steps = "num_inference_steps" if route.startswith("/v1/") else "steps"
    start = json.dumps(fine).removesuffix("}").encode()
    json_, invalid = "INVALID_JSON", "VALIDATION_ERROR"

    def put(text: bytes) -> bytes:
        return start + b", " + text + b"}"

    number = f'"{steps}": '.encode()
    seed = b'"seed": '
    return {
        "empty": (b"", invalid),
        "null": (b"null", invalid),
        "a list": (b"[]", invalid),
        "a text": (b'"prompt"', invalid),
        "truncated": (start, json_),
        "truncated in a text": (start[:-1], json_),
        "a comma too many": (put(b'"seed": 1,'), json_),
        "two values": (start + b"}{}", json_),
        "not UTF-8": (start + b', "negativePrompt": "\xff\xfe"}', json_),
        "UTF-16": (json.dumps(fine).encode("utf-16"), json_),
        "NaN": (put(number + b"NaN"), json_),
        "Infinity": (put(seed + b"-Infinity"), json_),
        "1e999": (put(number + b"1e999"), invalid),
        "-1e999": (put(seed + b"-1e999"), invalid),
        "1e999 for a fraction": (
            put(b'"guidance_scale": 1e999' if "v1" in route else b'"guidanceScale": 1e999'),
            invalid,
        ),
        "a number of 5000 digits": (put(seed + b"9" * 5000), json_),
        "a number of 4000 digits": (put(seed + b"9" * 4000), invalid),
        "10k deep lists": (put(b'"seed": ' + b"[" * 10_000 + b"]" * 10_000), json_),
        "10k deep objects": (put(b'"seed": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000), json_),
        "100k deep": (b"[" * 100_000, json_),
        "a lone surrogate": (put(b'"seed": "\\ud800"'), json_),
        "a lone surrogate for a prompt": (b'{"prompt": "\\udfff a"}', json_),
        "a lone surrogate for a name": (put(b'"\\ud800": 1'), json_),
        "a lone surrogate where any text goes": (put(b'"negativePrompt": "\\ud800"'), json_),
        "bool as int": (put(number + b"true"), invalid),
        "bool as seed": (put(seed + b"false"), invalid),
        "text as int": (put(number + b'"20"'), invalid),
        "fraction as int": (put(number + b"20.0"), invalid),
        "a prompt of 10 MB": (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', invalid),
        "a name of 10 MB": (put(b'"' + b"a" * 10_000_000 + b'": ]'), json_),
        "a model of 10 MB": (put(b'"model": "' + b"a" * 10_000_000 + b'"'), "MODEL_NOT_FOUND"),
        "a million entries": (put(b'"prompt2": [' + b"1," * 10**6 + b"1]"), json_),
        "a million objects": (put(b'"loras": [' + b"{}," * 10**6 + b"{}]"), json_),
        "a million names": (
            b"{" + b",".join(b'"x%d":1' % i for i in range(10**6)) + b"}",
            json_,
        ),
        "one name twice": (put(b'"prompt": "b"'), json_),
        "one name twice, inside": (put(b'"config": {"steps": 1, "steps": 2}'), json_),
        "one name twice, escaped": (put(b'"pr\\u006fmpt": "b"'), json_),
        "an object as a prompt": (b'{"prompt": {"$ne": ""}}', invalid),
        "over 32 MiB": (b'{"prompt": "' + b"a" * (32 * 2**20) + b'"}', "PAYLOAD_TOO_LARGE"),
    }
