"""What the A1111 routes return, for their description."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class A1111Model(BaseModel):
    """A response of this API."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class A1111Error(A1111Model):
    """An error in the web UI's shape."""

    error: str
    """The stable code of the error."""
    detail: str
    """What was wrong, and what helps."""
    body: str
    """Always empty, as in the web UI."""
    errors: str
    """The same as `detail`."""


class ImagesResponse(A1111Model):
    """The images of txt2img or img2img."""

    images: list[str]
    """The PNGs in base64; none if `send_images` is false."""
    parameters: dict[str, Any]
    """The request, without its files."""
    info: str
    """JSON in a string: seeds, sizes, the text under each image in `infotexts`, and `warnings`."""


class ProgressState(A1111Model):
    """How far the caller's newest job is, as the web UI tells it."""

    skipped: bool
    """Always false."""
    interrupted: bool
    """Always false."""
    stopping_generation: bool
    """Always false."""
    job: str
    """The id of the job; empty if there is none."""
    job_count: int
    """The images of the job that are not done; 0 if there is none."""
    job_timestamp: str
    """When the job began, as in 20261130091500; empty if there is none."""
    job_no: int
    """The images of the job that are done."""
    sampling_step: int
    """The steps that the image has taken."""
    sampling_steps: int
    """All steps of the image."""


class ProgressResponse(A1111Model):
    """The progress of the caller's newest job that runs."""

    progress: float
    """The share of all steps that are done, from 0 to 1; 0 if there is no job."""
    eta_relative: float
    """The predicted seconds until the job is done."""
    state: ProgressState
    """How far the job is."""
    current_image: str | None
    """A preview as JPEG in base64; null if there is none."""
    textinfo: str | None
    """Always null."""


class PngInfoResponse(A1111Model):
    """What is written in a PNG."""

    info: str
    """The text under the image; empty if it has none."""
    items: dict[str, Any]
    """Its text chunks by keyword."""
    parameters: dict[str, str]
    """The fields of the text, by the web UI's names."""
