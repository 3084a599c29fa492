"""The image sizes that suit a checkpoint, from its native size alone.

No checkpoint files. SDXL was trained on areas near one megapixel (Podell et al. 2023, appendix I);
a checkpoint with another native size gets the same ratios, scaled.
"""

from dataclasses import dataclass
from math import log, sqrt

from serve_app.core.diffusion.spec import PIXELS_PER_LATENT
from serve_app.core.errors import InvalidRequest

SDXL_SIDE = 1024
ASPECTS: dict[str, tuple[int, int]] = {  # width, height at a native size of 1024
    "Auto": (1024, 1024),
    "1:1": (1024, 1024),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "4:3": (1152, 896),
    "3:4": (896, 1152),
    "5:4": (1088, 896),
    "4:5": (896, 1088),
    "16:9": (1344, 768),
    "9:16": (768, 1344),
    "21:9": (1536, 640),
}


RESOLUTIONS = {"high": 1.0, "standard": 0.75}  # sides, as a share of those above


@dataclass(frozen=True, slots=True)
class SizeRules:
    """The legal sizes for a checkpoint."""

    native_size: int  # pixels a side

    @property
    def min_side(self) -> int:
        """The shortest side in pixels: a quarter of the native size."""
        return _snap(self.native_size / 4)

    @property
    def max_side(self) -> int:
        """The longest side in pixels: twice the native size."""
        return _snap(self.native_size * 2)

    @property
    def max_pixels(self) -> int:
        """The largest area: 2.4 megapixels at SDXL's native size."""
        return int(2_400_000 * (self.native_size / SDXL_SIDE) ** 2)

    @property
    def largest(self) -> tuple[int, int]:
        """Width and height of an image that takes the most memory."""
        height = self.max_pixels // self.max_side // PIXELS_PER_LATENT * PIXELS_PER_LATENT
        return self.max_side, height

    def for_aspect(self, aspect: str, resolution: str = "high") -> tuple[int, int]:
        """Return width and height for a named aspect ratio; raise `InvalidRequest` if unknown.

        A resolution of "standard" has about 0.56 of the native area.
        """
        if aspect not in ASPECTS:
            raise InvalidRequest("aspect", f"must be one of {', '.join(ASPECTS)}")
        width, height = ASPECTS[aspect]
        scale = RESOLUTIONS[resolution] * self.native_size / SDXL_SIDE
        return _snap(width * scale), _snap(height * scale)

    @property
    def aspect_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each named aspect ratio, without doubles."""
        return tuple(dict.fromkeys(map(self.for_aspect, ASPECTS)))

    def check(self, width: int, height: int) -> None:
        """Raise `InvalidRequest` with the legal range unless the size is legal."""
        for name, side in (("width", width), ("height", height)):
            if side % PIXELS_PER_LATENT or not self.min_side <= side <= self.max_side:
                raise InvalidRequest(
                    name,
                    f"must be a multiple of {PIXELS_PER_LATENT} between {self.min_side} and "
                    f"{self.max_side}, got {side}",
                )
        if width * height > self.max_pixels:
            raise InvalidRequest(
                "width", f"times height must be at most {self.max_pixels}, got {width * height}"
            )

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return the legal size for one meant for SDXL.

        The nearest legal size if it is not too large, else scaled by the ratio of the native sizes,
        and fitted: to the native area at least, since a checkpoint that is smaller than SDXL was
        trained for no less, and clients ask for 512 x 512 by default.
        """
        is_small = max(width, height) <= self.max_side and width * height <= self.max_pixels
        scale = self.native_size / SDXL_SIDE
        if is_small or scale >= 1:
            return self.fit(width, height)
        scale = max(scale, self.native_size / sqrt(width * height))
        return self.fit(max(1, round(width * scale)), max(1, round(height * scale)))

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Return the legal size nearest to an image's own, with its aspect ratio where possible.

        Returns a legal size unchanged.
        """
        scale = min(
            1.0, self.max_side / max(width, height), sqrt(self.max_pixels / (width * height))
        )
        scale = max(scale, self.min_side / min(width, height))
        fitted = [
            min(max(_snap(side * scale), self.min_side), self.max_side) for side in (width, height)
        ]
        while fitted[0] * fitted[1] > self.max_pixels:
            fitted[fitted.index(max(fitted))] -= PIXELS_PER_LATENT
        return fitted[0], fitted[1]


def nearest_aspect(width: int, height: int) -> str:
    """Return the name of the aspect ratio that is nearest to a size's, by their quotient.

    A ratio is near where either its numbers are, or the size that it has here.
    """
    named = (name for name in ASPECTS if name != "Auto")

    def distance(name: str) -> float:
        pairs = [tuple(map(int, name.split(":"))), ASPECTS[name]]
        return min(abs(log(width * high / (height * wide))) for wide, high in pairs)

    return min(named, key=distance)


def _snap(side: float) -> int:
    """Return the nearest multiple of `PIXELS_PER_LATENT`, at least one."""
    return max(1, round(side / PIXELS_PER_LATENT)) * PIXELS_PER_LATENT
