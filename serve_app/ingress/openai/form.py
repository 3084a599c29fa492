"""The form of POST /v1/images/edits: its text fields, and its images as files or as text."""

import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile

from serve_app.core.errors import InvalidRequest
from serve_app.ingress.image_input import InputFiles
from serve_app.ingress.input_file import InputFile
from serve_app.ingress.openai.schemas import MAX_IMAGES, ImageEditRequest

MEDIA_TYPE = "multipart/form-data"
_MAX_FILES, _MAX_FIELDS = 16, 64
_MAX_TEXT_BYTES = sys.maxsize  # of one field: the whole body has a limit, and an image may be text
_IMAGE_FIELDS = ("image", "image[]")
_INTERVAL_FIELD = re.compile(r"guidanceInterval\[\d*\]")
_LORA_FIELD = re.compile(r"loras\[\d*\]\[(name|weight)\]")  # how OpenAI's clients write a list
_COMPONENTS = "#/components/schemas/{model}"  # where FastAPI puts what the routes share
DESCRIPTION = {
    "required": True,
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["image", "prompt"],
                "properties": {
                    "image": {
                        "description": "A PNG, JPEG or WebP file, or its text as a data URI or in "
                        "base64; several as `image[]`.",
                        "type": "string",
                        "format": "binary",
                    },
                    **ImageEditRequest.model_json_schema(ref_template=_COMPONENTS)["properties"],
                    "loras": {
                        "description": "LoRAs by name and weight, as JSON text. Default: none.",
                        "type": "string",
                        "contentMediaType": "application/json",
                        "examples": ["[]"],
                    },
                    "guidanceInterval": {
                        "description": "The noise levels between which guidance is on, low and "
                        "high, as JSON text. Default: the model's own.",
                        "type": "string",
                        "contentMediaType": "application/json",
                        "examples": ["[0.28, 5.42]"],
                    },
                },
            }
        }
    },
}


@dataclass(frozen=True, slots=True)
class EditForm:
    """The fields of a form, and its images in order."""

    fields: ImageEditRequest
    images: Sequence[UploadFile | str]

    async def input_files(self, count: int) -> list[InputFiles]:
        """Return the first images, read."""
        return [
            InputFiles(
                InputFile.of_text(image)
                if isinstance(image, str)
                else InputFile(await image.read())
            )
            for image in self.images[:count]
        ]


@asynccontextmanager
async def read_form(request: Request) -> AsyncIterator[EditForm]:
    """Yield the form in a request's body; its files are closed at the end.

    Raises `InvalidRequest`, and what a JSON body with the same faults would.
    """
    _check_charset(request.headers["content-type"])
    async with request.form(
        max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_TEXT_BYTES
    ) as form:
        yield EditForm(_read_fields(form), _images(form))


def _check_charset(content_type: str) -> None:
    """Return if the fields of a form are UTF-8.

    Raises `InvalidRequest` for another encoding: Python knows a hundred, and not all are text.
    """
    _, options = parse_options_header(content_type)
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise InvalidRequest("charset", "must be utf-8")


def _read_fields(form: FormData) -> ImageEditRequest:
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "mask":
            raise InvalidRequest(
                "mask", "is not supported", remedy="Omit it to edit the whole image"
            )
        if name in _IMAGE_FIELDS or _LORA_FIELD.fullmatch(name) or _INTERVAL_FIELD.fullmatch(name):
            continue
        if not isinstance(value, str) or name in fields:
            raise InvalidRequest(name, "must be a single text field")
        if value or name == "prompt":
            fields[name] = value
    fields |= _loras(form) | _interval(form)
    try:
        return ImageEditRequest.model_validate_strings(fields)
    except ValidationError as error:
        located: list[Any] = [{**e, "loc": ("body", *e["loc"])} for e in error.errors()]
        raise RequestValidationError(located) from None


def _loras(form: FormData) -> dict[str, str]:
    """Return the field `loras` as JSON text, from the fields `loras[][name]` and so on.

    OpenAI's Python client sends all names before all weights, so they are matched by number.
    """
    columns: dict[str, list[Any]] = {"name": [], "weight": []}
    for field, value in form.multi_items():
        if match := _LORA_FIELD.fullmatch(field):
            columns[match[1]].append(_number(value) if match[1] == "weight" else value)
    names, weights = columns["name"], columns["weight"]
    if not (names or weights):
        return {}
    if (weights and len(weights) != len(names)) or not all(isinstance(n, str) for n in names):
        raise InvalidRequest(
            "loras",
            "must have a name and a weight each, or no weights",
            remedy='Or send the field as JSON text: [{"name": "ink"}]',
        )
    entries = [{"name": name} for name in names]
    for entry, weight in zip(entries, weights, strict=False):
        entry["weight"] = weight
    return {"loras": json.dumps(entries)}


def _interval(form: FormData) -> dict[str, str]:
    """Return the field `guidanceInterval` as JSON text, from fields `guidanceInterval[]`."""
    sigmas = [_number(v) for name, v in form.multi_items() if _INTERVAL_FIELD.fullmatch(name)]
    return {"guidanceInterval": json.dumps(sigmas)} if sigmas else {}


def _number(value: UploadFile | str) -> float | str:
    try:
        return float(value) if isinstance(value, str) else ""
    except ValueError:
        return str(value)


def _images(form: FormData) -> list[UploadFile | str]:
    """Return the images of a form. Raises `InvalidRequest` for none, and for too many."""
    images = [value for name in _IMAGE_FIELDS for value in form.getlist(name)]
    if not images:
        raise InvalidRequest("image", "is required: a file, or several as image[]")
    if len(images) > MAX_IMAGES:
        raise InvalidRequest("image", f"must be at most {MAX_IMAGES} files, got {len(images)}")
    return images
