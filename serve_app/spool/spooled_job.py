"""`SpooledJob`: a job that a stop left unfinished, and how far each of its images is."""

from dataclasses import dataclass

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.service.jobs import IdempotencyClaim
from serve_app.core.service.tasks import ImageSnapshot


@dataclass(frozen=True, slots=True)
class SpooledJob:
    """All that another process needs to finish the job, to the same bytes.

    `request` is JSON that only the ingress reads. `inputs` and `images` have an entry for each
    image of the job; one without a snapshot has not begun.
    """

    id: str
    caller: str  # the name of a key or an address, never the key
    route: str
    created: float  # seconds since the epoch
    claim: IdempotencyClaim
    origin: str  # a digest of the versions and the model files that began it
    request: str
    inputs: tuple[ImageInputs, ...]
    images: tuple[ImageSnapshot | None, ...]
    webhook: str | None = None  # the receiver that is told of its end

    @property
    def progress(self) -> object:
        """How far the job is: what is equal in it need not be written twice."""
        return self.origin, tuple(
            None if image is None else (image.steps_done, image.suspicion) for image in self.images
        )
