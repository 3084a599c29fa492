"""A job's request as JSON, as the spool keeps it: all of a `GenerationJob` but the input files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.ingress.generation_job import GenerationJob, RerunFormat

_JOB = TypeAdapter(GenerationJob)
_LEFT_OUT: Mapping[str, Any] = {"rerun": {"request"}, "images": {"__all__": {"inputs"}}}


def write_request(job: GenerationJob) -> str:
    """Return the job as JSON, without its input files."""
    return _JOB.dump_json(job, exclude=_LEFT_OUT).decode()


def read_request(
    text: str, inputs: Sequence[ImageInputs], formats: Mapping[str, RerunFormat]
) -> GenerationJob:
    """Return the job of a text, with its input files; `formats` are by route.

    Raises `ValueError`, `KeyError`, `TypeError` or `InvalidRequest` if it is not one.
    """
    fields = json.loads(text)
    rerun = fields["rerun"]
    rerun_format = replace(formats[rerun["route"]], options=rerun["options"])
    images = [
        image | {"inputs": files} for image, files in zip(fields["images"], inputs, strict=True)
    ]
    return _JOB.validate_python(fields | {"rerun": rerun_format, "images": images})
