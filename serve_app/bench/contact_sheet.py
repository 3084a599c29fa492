"""A contact sheet of the demo: real pictures of the service's engine, their prompts underneath.

Knows no files but the one it writes. The seed of a picture is its place on the sheet.
"""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from serve_app.bench.demo_quality import TOGETHER, DemoRunner
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.demo.evaluation import GUIDANCE, HANDOFF, SIDE, STEPS
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect

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
_COLUMNS, _GAP, _TEXT = 6, 16, 58  # pictures; pixels; pixels under each for its prompt
_PAPER, _INK = (250, 250, 248), (60, 60, 66)
_FONT = "DejaVuSans.ttf"  # Pillow's own has no accents
console = Console(highlight=False)


def write_contact_sheet(output: Path) -> None:
    """The sheet is written; exits when its font is not installed."""
    try:
        font = ImageFont.truetype(_FONT, 10)
    except OSError:
        raise SystemExit(f"the sheet needs {_FONT}: install Debian's fonts-dejavu-core") from None
    checkpoints = [inspect(demo_folder(stage), stage) for stage in Stage]
    specs = [
        ImageSpec(
            prompt=prompt,
            seed=place,
            width=SIDE,
            height=SIDE,
            steps=STEPS,
            guidance=GUIDANCE,
            handoff=HANDOFF,
        )
        for place, prompt in enumerate(PROMPTS)
    ]
    pictures = DemoRunner(checkpoints, 1, images=TOGETHER).generate(specs)
    rows = -(-len(PROMPTS) // _COLUMNS)
    across, down = SIDE + _GAP, SIDE + _TEXT
    sheet = Image.new("RGB", (_COLUMNS * across + _GAP, rows * down + _GAP), _PAPER)
    pencil = ImageDraw.Draw(sheet)
    for place, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        x, y = _GAP + place % _COLUMNS * across, _GAP + place // _COLUMNS * down
        sheet.paste(Image.fromarray(picture), (x, y))
        pencil.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline=(226, 226, 222))
        pencil.multiline_text(
            (x, y + SIDE + 4), textwrap.fill(prompt, 23), fill=_INK, font=font, spacing=2
        )
    sheet.save(output, optimize=True)
    console.print(f"{output}: {len(PROMPTS)} pictures of {STEPS} steps")
