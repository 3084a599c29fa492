"""The A1111 door: the API of AUTOMATIC1111's web UI, with its error shape."""

from collections.abc import Mapping
from typing import Any

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.a1111.field_docs import FIELD_DOCS
from serve_app.ingress.a1111.rerun import RERUN_FORMATS
from serve_app.ingress.a1111.routes import router
from serve_app.ingress.a1111.schemas import IMG2IMG, PREFIX, TXT2IMG, WIRE_NAMES
from serve_app.ingress.door import Door, ErrorResponse
from serve_app.ingress.example_image import EXAMPLE_IMAGE
from serve_app.ingress.validation import field_error


def error_body(error: ErrorResponse, request_id: str) -> dict[str, Any]:
    """Return the JSON of an error; clients show one of its texts."""
    return {"error": error.code, "detail": error.message, "body": "", "errors": error.message}


def body_examples(info: ServiceInfo) -> Mapping[str, Mapping[str, Any]]:
    """Return the examples of the bodies, by their names."""
    prompt = "a large yellow star on a black background"
    return {
        TXT2IMG: {
            "settings": {
                "summary": "The web UI's settings",
                "value": {
                    "prompt": prompt,
                    "negative_prompt": "a blue circle",
                    "sampler_name": "DPM++ 2M",
                    "scheduler": "Karras",
                    "steps": 20,
                    "cfg_scale": 7,
                    "seed": -1,
                },
            }
        },
        IMG2IMG: {
            "image": {
                "summary": "An image to change",
                "value": {
                    "prompt": "a large red heart on a white background",
                    "init_images": [EXAMPLE_IMAGE],
                    "denoising_strength": 0.6,
                },
            }
        },
        f"{PREFIX}/options": {
            "checkpoint": {
                "summary": "Another checkpoint",
                "value": {"sd_model_checkpoint": info.default_model.name},
            }
        },
        f"{PREFIX}/png-info": {
            "image": {"summary": "A picture to read", "value": {"image": EXAMPLE_IMAGE}}
        },
    }


A1111 = Door(
    router=router,
    error_body=error_body,
    field_error=field_error,
    wire_names=WIRE_NAMES,
    field_docs=FIELD_DOCS,
    body_examples=body_examples,
    rerun_formats=RERUN_FORMATS,
)
