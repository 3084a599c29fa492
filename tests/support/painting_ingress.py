"""An ingress on Ray Serve without stages: its images and previews have the bytes of real ones."""

import asyncio
from collections.abc import AsyncGenerator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from ray import serve

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import Generated, GeneratedImage, ImageEvent, Preview, Progress
from serve_app.core.service.jobs import JobError, JobResult, JobState
from serve_app.core.service.outlook import Outlook
from serve_app.core.service.tasks import ImageTask
from serve_app.deployments.ledger import Ledger
from tests.support.api import make_api
from tests.support.fake_conductor import PROFILES, FakeConductor

STEP_S = 0.04  # so long that a stream on a busy machine takes each preview before the next
_SIDES = {"PNG": 380, "JPEG": 110}  # pixels of noise: some 430 and 8 kB


def noise(format: str) -> bytes:
    """Return a picture of noise as a file, which no format makes much smaller."""
    side = _SIDES[format]
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


class PaintingConductor(FakeConductor):
    """Makes an image of noise in the steps that were asked for, with a preview of each."""

    def __init__(self) -> None:
        super().__init__()
        self._png, self._jpeg = noise("PNG"), noise("JPEG")

    async def run(self, task: ImageTask) -> AsyncGenerator[ImageEvent, None]:
        steps = task.spec.steps
        for step in range(steps):
            self.outlooks[task.id] = Outlook(Stage.BASE, step, steps, 0, 0.0, steps - step)
            yield Progress(step)
            yield Preview(step, b"%b%d" % (self._jpeg, step))  # equal ones would be no news
            await asyncio.sleep(STEP_S)
        del self.outlooks[task.id]
        yield Generated(GeneratedImage(self._png, PROFILES))


class ForgetfulLedger(Ledger):
    """Keeps no images, whose memory would be the process's that is measured."""

    async def finish(
        self,
        id: str,
        owner: str,
        state: JobState,
        error: JobError | None = None,
        result: JobResult | None = None,
    ) -> None:
        await super().finish(id, owner, state, error, None)


@serve.deployment(max_ongoing_requests=1000)
@serve.ingress()
class PaintingIngress:
    """One replica with the whole API over a `PaintingConductor`."""

    def __serve_build_asgi_app__(self) -> Any:
        return make_api(PaintingConductor(), ForgetfulLedger(None), proxy_sets_request_id=True)


def deploy(app: str, route: str) -> None:
    """Deploy the ingress on this process's Ray."""
    application = PaintingIngress.bind()  # type: ignore[attr-defined]  # mypy skips class decorators
    serve.run(application, name=app, route_prefix=route)


def withdraw(app: str) -> None:
    """Delete it."""
    serve.delete(app)
