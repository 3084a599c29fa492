"""A cloud's maker without a connection: what is sent is judged, and what comes back is read."""

import json

from serve_app.cloud.gemini_answer import png_of
from serve_app.cloud.gemini_errors import error_of
from serve_app.cloud.gemini_request import request_body
from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.tasks import ImageTask
from tests.support.fake_conductor import InstantConductor
from tests.support.gemini_stand_in import illegal_body, image_part, made, picture


class InstantGemini(InstantConductor):
    """Makes of each image the call that the Gemini API would get, and answers as the stand-in does.

    It can be called from any event loop. A call that the API would not take is an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answer = made(image_part(picture())).body

    async def generate(self, task: ImageTask) -> GeneratedImage:
        if refusal := illegal_body(json.loads(request_body(task, "1K"))):
            raise error_of(refusal.status, refusal.body)
        return GeneratedImage(png_of(self._answer), ())
