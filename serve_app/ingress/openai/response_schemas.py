"""The JSON that the OpenAI routes return: OpenAI's shapes, with seeds and warnings added."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class ResponseModel(BaseModel):
    """A response, or a part of one."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ImageData(ResponseModel):
    """One image, in the form that `response_format` asked for."""

    b64_json: str | None = None
    """The file in base64, in the requested format; absent where there is a `url`."""
    url: str | None = None
    """Where the file is for ten minutes, if `response_format` is `url`; else absent."""
    seed: int | None
    """Seed of the image, which makes it again; null for a cloud's model, which takes none."""


class ImagesResponse(ResponseModel):
    """The response of both routes: OpenAI's, with seeds and warnings added."""

    created: int
    """When the job was accepted, in seconds since 1970."""
    data: list[ImageData]
    """The images."""
    size: str
    """Width and height of the first image in pixels, as in 1024x1024."""
    quality: str
    """The requested quality."""
    output_format: str
    """File format of the images: `png`, `jpeg` or `webp`."""
    background: str
    """Always `opaque`."""
    warnings: list[str]
    """What the caller should know, such as fields that were ignored; also in X-Aura-Warning."""


class Model(ResponseModel):
    """One model."""

    id: str
    """Name of the model, for requests."""
    object: Literal["model"]
    """Always `model`."""
    created: int
    """Always 0: checkpoints don't say when they were made."""
    owned_by: str
    """Always `aura-serve`."""
    license: str
    """Name of the model's licence, or `unknown`."""


class Models(ResponseModel):
    """GET /v1/models."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Model]
    """The models, the default one first."""


class OpenAIErrorBody(ResponseModel):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    """What went wrong and what to do, for people."""
    type: str
    """Kind of error, as OpenAI's API names it."""
    param: str | None
    """Field that is wrong, if one is."""
    code: str
    """Stable name of the error, for programs."""


class OpenAIErrorEnvelope(ResponseModel):
    """The shape of every error on these routes."""

    error: OpenAIErrorBody
    """What went wrong, why, and with which field."""
