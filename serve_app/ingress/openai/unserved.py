"""Fields of OpenAI's API that have no effect here: each is answered by a sentence, not refused.

Refused is only one whose neglect would deceive: a mask, without which all of the image changes.
"""

from typing import Any

from serve_app.ingress.openai.schemas import ImagesRequest

_SILENT = frozenset({"safety_identifier", "user"})  # they say who calls, not what to make
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # values that ask for nothing; None never does
    "input_fidelity": ("low",),
    "moderation": ("auto",),
    "style": (),
}
_REASONS = {
    "input_fidelity": "strength says how much of an image changes",
    "moderation": "the operator's filters apply",
    "style": "describe the style in the prompt",
}
_MAX_UNKNOWN = 8  # fields that are named


def unserved_warnings(body: ImagesRequest) -> list[str]:
    """Return a sentence on each field of a request that has no effect."""
    extra = body.model_extra or {}
    warnings = [
        f"{name} is ignored: {_REASONS[name]}"
        for name, neutral in _NEUTRAL.items()
        if extra.get(name) is not None and extra[name] not in neutral
    ]
    if body.partial_images and not body.stream:
        warnings.append("partial_images is ignored without stream")
    if body.background == "transparent":
        warnings.append("background transparent is ignored: the image is opaque")
    if body.format == "png" and body.output_compression not in (None, 100):
        warnings.append("output_compression is ignored: PNG is lossless")
    unknown = sorted(set(extra) - _SILENT - set(_NEUTRAL))
    warnings += [
        f"{name[:40]} is not a field of this API and is ignored" for name in unknown[:_MAX_UNKNOWN]
    ]
    if len(unknown) > _MAX_UNKNOWN:
        warnings.append(f"{len(unknown) - _MAX_UNKNOWN} more unknown fields are ignored")
    return warnings
