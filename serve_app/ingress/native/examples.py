"""Example bodies of the native routes; all of them work on the demo."""

from collections.abc import Mapping
from typing import Any

from serve_app.core.service.info import ServiceInfo

# a red heart on white, 128 pixels a side, drawn by serve_app.demo.renderer
_HEART = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAIAAAACAAQMAAAD58POIAAAABlBMVEXy+fnZMy1wm10mAAAA5ElEQVR42u2SO44D"
    "IRBE3+KRPdnODeybrG/mORpH4QiEBIjeAKZpo7VWDiw7mIpaRVV/gR07PgOnBOdgiB8BSQA4AK6sB45GIRJOIl1x"
    "gGUG3y0wLy1wABNMF7goMdfHxVrc1Vqaf9aqZxERqZ05aNlgsjkUryParvITlljj9FhR912FfytyjYMSpRIe4Kve"
    "BY1NDnMo1m503Z1NrW8RkWgUqQ/g+uDBEEUTtT4QDVsf69bGRnjtv9eNd4qka3O68HBHlK2q+ZjD5m5luIsfiZAH"
    "IqaBSPG//5HDQBT/yLJjx/vxC/RNSE9IIxqSAAAAAElFTkSuQmCC"
)


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
                    "baseImages": [_HEART],
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
