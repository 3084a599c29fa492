"""`GenerationJob`: the images that a request becomes, and what its response says of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.core.capacity.cost_model import megapixel_steps
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.resizing import ResizeMode
from serve_app.core.diffusion.spec import SEED_RANGE, ImageSpec, Stage
from serve_app.ingress.containers.png import size_of
from serve_app.ingress.metadata.record import (
    GenerationRecord,
    cloud_infotext,
    embed,
    infotext,
)


@dataclass(frozen=True, slots=True)
class JobImage:
    """One image of a job.

    `prompt` is the field as it was sent; the spec's may be longer. `digests` are those of its input
    files, as in `LoadedInputs`.
    """

    spec: ImageSpec
    prompt: str
    inputs: ImageInputs = NO_INPUTS
    digests: Mapping[str, str] = field(default_factory=dict)
    resize_mode: ResizeMode = ResizeMode.CROP  # how they came to the spec's size


@dataclass(frozen=True, slots=True)
class RerunFormat:
    """How a door writes the request that makes one image of a job again.

    `options` are fields of the job's own request that `request` needs, as JSON has them.
    """

    route: str
    request: Callable[["GenerationJob", JobImage], dict[str, Any]]
    options: Mapping[str, str | int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """The images that a request becomes, and what its response says of them."""

    images: tuple[JobImage, ...]
    seed: int  # of the first image; image i has the i-th seed after it
    model: str  # the name that the request chose
    models: Mapping[str, str]  # by stage
    refined: bool
    warnings: tuple[str, ...]
    timeout_s: float | None
    rerun: RerunFormat
    has_drawn_seed: bool = False  # the request has none
    names_cache: bool = False  # whether its record says `cache` at all: it is no default
    cloud: str | None = None  # whose cloud makes its images, without seeds; None: this service

    def with_seed(self, seed: int) -> "GenerationJob":
        """Return the same job with another seed."""
        images = [
            replace(image, spec=replace(image.spec, seed=_nth_seed(seed, i)))
            for i, image in enumerate(self.images)
        ]
        return replace(self, seed=seed, images=tuple(images))

    def with_warnings(self, *warnings: str) -> "GenerationJob":
        """Return the same job with more warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def with_cloud_model(self, name: str) -> "GenerationJob":
        """Return the same job of a cloud, made by the model that the cloud calls `name`."""
        return replace(self, model=name, models={str(Stage.BASE): name})

    def with_metadata(self, image: JobImage, png: bytes, profiles: Mapping[str, str]) -> bytes:
        """Return an image's PNG with its metadata; `profiles` are the numeric ones, by stage."""
        if self.cloud is None:
            text = infotext(image.spec, self.models)
        else:
            text = cloud_infotext(image.spec.prompt, size_of(png), self.model)
        return embed(png, text, self.record(image, profiles))

    def record(self, image: JobImage, profiles: Mapping[str, str]) -> GenerationRecord:
        """Return how one of the images can be made again, by which numeric profiles."""
        request = self.rerun.request(self, image)
        return GenerationRecord(
            self.rerun.route, request, image.spec.prompt, image.digests, self.models, profiles
        )

    @property
    def input_digests(self) -> str:
        """The digests of all input files, as text that tells images and parts apart."""
        return json.dumps([dict(image.digests) for image in self.images])

    @property
    def cost(self) -> float:
        """The job's share of its caller's rate limit, in megapixel-steps."""
        return sum(megapixel_steps(image.spec) for image in self.images)


def _nth_seed(seed: int, number: int) -> int:
    return (seed + number) % (SEED_RANGE[1] + 1)
