"""A contact sheet of the demo: images by the service's engine, with their prompts underneath.

The seed of an image is its position on the sheet.
"""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.errors import OperatorError
from serve_app.demo.evaluation import GUIDANCE, HANDOFF, SIDE, STEPS
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import open_device

PROMPTS = (
    "a red circle on a blue background",
    "a large yellow star on a black background",
    "a small white heart in the top right corner on a red background",
    "a big purple triangle at the bottom on a yellow background",
    "a green cross in the middle on a white background",
    "an orange square on the left on a grey background",
    "una estrella roja grande en el centro sobre un fondo blanco",
    "un corazón rosa arriba a la izquierda sobre un fondo negro",
    "un círculo blanco pequeño abajo a la derecha sobre un fondo morado",
    "un triángulo azul grande sobre un fondo naranja",
    "una cruz amarilla a la derecha sobre un fondo verde",
    "un cuadrado negro arriba sobre un fondo rosa",
    "a red heart to the left of a blue star on a white background",
    "a large yellow circle above a small black square on a grey background",
    "a white cross on the left and a pink heart on the right on a blue background",
    "un círculo verde encima de un triángulo morado sobre un fondo amarillo",
    "una estrella blanca a la izquierda de un corazón rojo sobre un fondo negro",
    "a plain orange background",
)
_COLUMNS, _GAP, _TEXT = 6, 16, 58  # images per row; pixels; pixels for the prompt
_PAPER, _INK = (250, 250, 248), (60, 60, 66)
_BATCH = 8  # images that step together
_FONT = "DejaVuSans.ttf"  # Pillow's own has no accents


def write_contact_sheet(output: Path) -> None:
    """Write the sheet as a PNG file. Raises `OperatorError` if its font is not installed."""
    try:
        font = ImageFont.truetype(_FONT, 10)
    except OSError:
        raise OperatorError(
            "is not installed", subject=f"the font {_FONT}", remedy="apt install fonts-dejavu-core"
        ) from None
    checkpoints = [inspect(demo_folder(stage), stage) for stage in Stage]
    specs = [
        ImageSpec(
            prompt=prompt,
            seed=position,
            width=SIDE,
            height=SIDE,
            steps=STEPS,
            guidance=GUIDANCE,
            handoff=HANDOFF,
        )
        for position, prompt in enumerate(PROMPTS)
    ]
    device = open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)
    pipeline = LocalPipeline(checkpoints, device, images=_BATCH, strict=False)
    images = pipeline.generate(specs)
    rows = -(-len(PROMPTS) // _COLUMNS)
    width, height = SIDE + _GAP, SIDE + _TEXT
    sheet = Image.new("RGB", (_COLUMNS * width + _GAP, rows * height + _GAP), _PAPER)
    pencil = ImageDraw.Draw(sheet)
    for position, (prompt, image) in enumerate(zip(PROMPTS, images, strict=True)):
        x, y, *_ = cell(position)
        sheet.paste(Image.fromarray(image), (x, y))
        pencil.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline=(226, 226, 222))
        pencil.multiline_text(
            (x, y + SIDE + 4), textwrap.fill(prompt, 23), fill=_INK, font=font, spacing=2
        )
    sheet.save(output, optimize=True)


def cell(position: int) -> tuple[int, int, int, int]:
    """Return the box of an image on the sheet: left, top, right and bottom."""
    x = _GAP + position % _COLUMNS * (SIDE + _GAP)
    y = _GAP + position // _COLUMNS * (SIDE + _TEXT)
    return x, y, x + SIDE, y + SIDE
