"""Conductors that keep the contract without a model: what the routes are tested with."""

import asyncio
from io import BytesIO

from PIL import Image

from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.events import Made
from serve_app.core.service.info import Condition, Health, License, ModelFacts, ServiceFacts

PROFILES = ((Stage.BASE, "base-float32-4-0123abcd"), (Stage.REFINER, "refiner-float32-4-0123abcd"))
NOISE = NoiseConfig.from_scheduler_config({})
LICENSES = tuple(
    License(model, "CreativeML Open RAIL++-M", "https://example.org/license", ("harm",), "the text")
    for model in ("sdxl-base-1.0", "sdxl-refiner-1.0")
)

FACTS = ServiceFacts(
    models=(ModelFacts("sdxl-base-1.0", 1024, NOISE),),
    refiner="sdxl-refiner-1.0",
    device="cpu",
    precision="fp32",
    image_count=2,
    licenses=LICENSES,
)


class Painter:
    """Paints every image in one colour at once, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ImageSpec, bytes | None, float | None]] = []
        self.now = Health(Condition.READY, "", {"base": 1, "refiner": 1}, 0.0)
        self.owed = 12.3  # seconds
        self.warnings: tuple[str, ...] = ()  # of every image

    async def make(
        self, id: str, spec: ImageSpec, source: bytes | None, timeout: float | None
    ) -> Made:
        self.asked.append((id, spec, source, timeout))
        file = BytesIO()
        Image.new("RGB", (spec.width, spec.height), "teal").save(file, "PNG")
        return Made(file.getvalue(), PROFILES, self.warnings)

    async def health(self) -> Health:
        return self.now

    def owed_seconds(self) -> float:
        return self.owed

    @property
    def specs(self) -> list[ImageSpec]:
        return [spec for _, spec, _, _ in self.asked]


class Instant(Painter):
    """The same small picture at once, whatever is asked; remembers nothing."""

    def __init__(self) -> None:
        super().__init__()
        file = BytesIO()
        Image.new("RGB", (8, 8), "teal").save(file, "PNG")
        self._made = Made(file.getvalue(), PROFILES)

    async def make(
        self, id: str, spec: ImageSpec, source: bytes | None, timeout: float | None
    ) -> Made:
        return self._made


class Failing(Painter):
    """Fails at one image, the second; the others wait until they are cancelled."""

    def __init__(self, error: Exception, at: int = 1) -> None:
        super().__init__()
        self.error = error
        self.at = at
        self.begun = 0
        self.cancelled = 0

    async def make(
        self, id: str, spec: ImageSpec, source: bytes | None, timeout: float | None
    ) -> Made:
        self.begun += 1
        if id.endswith(f"-{self.at}"):
            raise self.error
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("nobody cancelled it")
