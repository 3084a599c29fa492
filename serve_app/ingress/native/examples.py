"""Example bodies of the native routes; all of them work on the demo."""

from collections.abc import Mapping
from typing import Any

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.example_image import EXAMPLE_IMAGE


def body_examples(info: ServiceInfo) -> Mapping[str, Mapping[str, Any]]:
    """Return the examples of each route's body, by their names."""
    return {
        "/generate": {
            "prompt": {
                "summary": "A prompt alone",
                "value": {"prompt": "a red heart on a white background"},
            },
            "settings": {
                "summary": "A prompt with settings",
                "value": {
                    "prompt": "a large yellow star on a black background",
                    "negativePrompt": "a blue circle",
                    "aspectRatio": "3:2",
                    "steps": 20,
                    "temperature": 0.5,
                    "seed": 7,
                    "imageCount": 1,
                },
            },
        },
        "/refine": {
            "image": {
                "summary": "A base image and a prompt",
                "value": {
                    "baseImages": [EXAMPLE_IMAGE],
                    "refinePrompt": "a large red heart on a white background",
                    "strength": 0.6,
                    "imageCount": 1,
                },
            },
        },
        "/licenses": {
            "accept": {
                "summary": "Accept the terms in force",
                "value": {"accept": True, "termsDigest": info.terms_digest},
            },
        },
    }
