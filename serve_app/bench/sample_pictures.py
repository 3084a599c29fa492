"""Synthetic images from a seed, on which encoders and HTTP are measured.

How well an image compresses is what matters, so there are three kinds.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

KINDS = ("smooth", "grain", "flat")


def draw_picture(kind: str, side: int = 1024, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return an image of a kind as (side, side, 3).

    "smooth" has soft shapes of many sizes, "grain" adds the grain of a photo, and "flat" has areas
    of one colour with hard edges.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    if kind == "flat":
        disc = (x - 0.45) ** 2 + (y - 0.45) ** 2 < 0.06
        return np.where(disc[..., None], (220, 30, 30), (30, 60, 200)).astype(np.uint8)
    shades = 128 + 90 * np.sin(3 * x + 2 * y) * np.cos(5 * y - 2 * x)
    picture = np.repeat(shades[..., None], 3, axis=2)
    for cells, contrast in ((8, 40), (32, 25), (128, 12)):
        coarse = rng.normal(0, contrast, (3, cells, cells)).astype(np.float32)
        planes = [Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC) for c in coarse]
        picture += np.stack([np.asarray(plane) for plane in planes], axis=2)
    if kind == "grain":
        picture += rng.normal(0, 2, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)
