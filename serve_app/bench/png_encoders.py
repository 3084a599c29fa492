"""PNG encoder settings on 1024 x 1024 images: milliseconds and size.

The settings take turns on every image, so that a noisy machine disturbs all of them.
"""

import statistics
import time
import zlib
from io import BytesIO

from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve_app.bench.sample_pictures import KINDS, draw_picture
from serve_app.runtime.png import PNG_LEVEL, PNG_STRATEGY

_SETTINGS = {  # level, zlib's strategy
    "level 1, runs": (1, zlib.Z_RLE),
    "level 1, Huffman": (1, zlib.Z_HUFFMAN_ONLY),
    "level 1": (1, zlib.Z_DEFAULT_STRATEGY),
    "level 3": (3, zlib.Z_DEFAULT_STRATEGY),
    "level 6 (Pillow's default)": (6, zlib.Z_DEFAULT_STRATEGY),
}
console = Console(highlight=False)


def compare(*, runs: int) -> None:
    """Print median, spread and size for every setting and kind of image; mark the one in use."""
    pictures = {kind: Image.fromarray(draw_picture(kind)) for kind in KINDS}
    timings: dict[tuple[str, str], list[float]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for _ in track(range(runs), "encoding", console=console, transient=True):
        for name, (level, strategy) in _SETTINGS.items():
            for kind, picture in pictures.items():
                file = BytesIO()
                start = time.perf_counter()
                picture.save(file, "PNG", compress_level=level, compress_type=strategy)
                milliseconds = (time.perf_counter() - start) * 1000
                timings.setdefault((name, kind), []).append(milliseconds)
                sizes[name, kind] = file.tell()
    table = Table(
        title="PNG of a 1024 x 1024 image, one thread",
        caption=f"{runs} runs: median ms \\[min, max], and size. The setting in use is bold",
    )
    table.add_column("Pillow")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    for name, setting in _SETTINGS.items():
        cells = [_cell(timings[name, kind], sizes[name, kind]) for kind in KINDS]
        in_use = setting == (PNG_LEVEL, PNG_STRATEGY)
        table.add_row(name, *cells, style="bold" if in_use else None)
    console.print(table)


def _cell(timings: list[float], size: int) -> str:
    spread = f"\\[{min(timings):.0f}, {max(timings):.0f}]"
    return f"{statistics.median(timings):.0f} ms, {size / 1e6:.2f} MB\n[dim]{spread}[/]"
