"""The contact sheet: every image of it shows what its prompt says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_app.demo.contact_sheet import PROMPTS, cell, write_contact_sheet
from serve_app.demo.scene import Colour, Kind, Place
from serve_app.demo.shape_reader import read


@pytest.mark.long
def test_every_cell_of_the_sheet_is_the_image_of_its_prompt(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        images = [np.asarray(sheet.crop(cell(number))) for number in range(len(PROMPTS))]
    readings = [read(image) for image in images]
    circle, heart = readings[0], readings[2]
    assert (circle.kind, circle.colour, circle.background) == (Kind.CIRCLE, Colour.RED, Colour.BLUE)
    assert (heart.kind, heart.colour, heart.place) == (Kind.HEART, Colour.WHITE, Place.TOP_RIGHT)
    assert readings[-1].background is Colour.ORANGE
    assert readings[-1].kind is None
    assert len({image.tobytes() for image in images}) == len(PROMPTS)
