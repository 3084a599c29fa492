"""Conductors that keep the contract without a model: what the routes are tested with."""

import asyncio
from io import BytesIO

from PIL import Image

from serve_app.core.diffusion.schedule import NoiseConfig
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.info import Health, HealthStatus, License, ModelInfo, ServiceInfo

PROFILES = ((Stage.BASE, "base-float32-4-0123abcd"), (Stage.REFINER, "refiner-float32-4-0123abcd"))
NOISE = NoiseConfig.from_scheduler_config({})
LICENSES = tuple(
    License(model, "CreativeML Open RAIL++-M", "https://example.org/license", ("harm",), "the text")
    for model in ("sdxl-base-1.0", "sdxl-refiner-1.0")
)

INFO = ServiceInfo(
    models=(ModelInfo("sdxl-base-1.0", 1024, NOISE),),
    refiner="sdxl-refiner-1.0",
    device="cpu",
    precision="fp32",
    default_image_count=2,
    licenses=LICENSES,
)


class FakeConductor:
    """Paints every image in one colour at once, and remembers what was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ImageSpec, bytes | None, float | None]] = []
        self.current_health = Health(HealthStatus.READY, "", {"base": 1, "refiner": 1}, 0.0)
        self.owed = 12.3  # seconds
        self.warnings: tuple[str, ...] = ()  # of every image

    async def generate(
        self, id: str, spec: ImageSpec, init_image: bytes | None, timeout: float | None
    ) -> GeneratedImage:
        self.calls.append((id, spec, init_image, timeout))
        file = BytesIO()
        Image.new("RGB", (spec.width, spec.height), "teal").save(file, "PNG")
        return GeneratedImage(file.getvalue(), PROFILES, self.warnings)

    async def health(self) -> Health:
        return self.current_health

    def owed_seconds(self) -> float:
        return self.owed

    @property
    def specs(self) -> list[ImageSpec]:
        return [spec for _, spec, _, _ in self.calls]


class InstantConductor(FakeConductor):
    """The same small picture at once, whatever is asked; remembers nothing."""

    def __init__(self) -> None:
        super().__init__()
        file = BytesIO()
        Image.new("RGB", (8, 8), "teal").save(file, "PNG")
        self._made = GeneratedImage(file.getvalue(), PROFILES)

    async def generate(
        self, id: str, spec: ImageSpec, init_image: bytes | None, timeout: float | None
    ) -> GeneratedImage:
        return self._made


class FailingConductor(FakeConductor):
    """Fails at one image, the second; the others wait until they are cancelled."""

    def __init__(self, error: Exception, at: int = 1) -> None:
        super().__init__()
        self.error = error
        self.at = at
        self.begun = 0
        self.cancelled = 0

    async def generate(
        self, id: str, spec: ImageSpec, init_image: bytes | None, timeout: float | None
    ) -> GeneratedImage:
        self.begun += 1
        if id.endswith(f"-{self.at}"):
            raise self.error
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("nobody cancelled it")
