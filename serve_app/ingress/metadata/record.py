"""The record of how an image was made, its text for other tools, and both in a PNG.

Chunks are added to a file that is already encoded: `parameters`, the text that AUTOMATIC1111
introduced and most tools read; `aura`, a JSON record from which the image can be made again; and
an XMP packet.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.core.diffusion.spec import ImageSpec, StepCache
from serve_app.ingress.containers import png as png_chunks
from serve_app.ingress.containers.container import Container
from serve_app.ingress.metadata import xmp

RECORD = "aura"
INFOTEXT = "parameters"
MAX_JOINED_PROMPT_CHARS = 8000  # after any number of refinements
_MAX_RECORD_CHARS = 400_000  # four prompts, each character escaped


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """How one image was made.

    `request` sent to `route` again gives the same bytes where the numeric profiles are the same.
    `prompt` is the whole prompt, with that of the base image; `digests` are those of input files.
    """

    route: str
    request: Mapping[str, Any]
    prompt: str
    digests: Mapping[str, str]  # SHA-256, by the file's part in the image
    models: Mapping[str, str]  # by stage
    profiles: Mapping[str, str]  # by stage

    def as_json(self) -> str:
        """Return the text of the chunk; equal records give equal text."""
        fields = {
            "version": 1,
            "route": self.route,
            "request": dict(self.request),
            "prompt": self.prompt,
            "models": dict(self.models),
            "profiles": dict(self.profiles),
        }
        fields |= {name: {"sha256": digest} for name, digest in self.digests.items()}
        return json.dumps(fields)


def infotext(spec: ImageSpec, models: Mapping[str, str]) -> str:
    """Return the text that other tools show under an image and fill their forms from."""
    settings: dict[str, object] = {
        "Steps": spec.steps,
        "Sampler": spec.sampler.definition.a1111_name,
        "Schedule type": spec.sampler.spacing.a1111_name,
        "CFG scale": f"{spec.guidance:g}",
        "Seed": spec.seed,
        "Size": f"{spec.width}x{spec.height}",
        "Model": models["base"],
    }
    if spec.strength is not None:
        settings["Denoising strength"] = f"{spec.strength:g}"
    if spec.guidance_interval is not None:
        settings["Guidance interval"] = "{:g} to {:g}".format(*spec.guidance_interval)
    if spec.cache is not StepCache.OFF:
        settings["Step cache"] = spec.cache.value
    if "refiner" in models and spec.handoff < 1:
        settings["Refiner"] = models["refiner"]
        settings["Refiner switch at"] = f"{spec.handoff:g}"
    tags = [
        f"<{ref.kind}:{ref.name}:{ref.weight:g}>" for ref in spec.extensions
    ]  # as in A1111's prompts
    lines = [" ".join([spec.prompt, *tags])]
    if spec.negative_prompt:
        lines.append(f"Negative prompt: {spec.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items()))
    return "\n".join(lines)


def cloud_infotext(prompt: str, size: tuple[int, int], model: str) -> str:
    """Return the text of an image by a cloud's model, which tells neither seed nor steps."""
    settings = {"Size": f"{size[0]}x{size[1]}", "Model": model}
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items())
    return f"{prompt}\n{line}"


def embed(png: bytes, text: str, record: GenerationRecord) -> bytes:
    """Return the PNG with its metadata; equal inputs give equal bytes."""
    chunks = [
        png_chunks.text_chunk(INFOTEXT, text),
        png_chunks.text_chunk(RECORD, record.as_json()),
        png_chunks.text_chunk(png_chunks.XMP_KEYWORD, xmp.packet(), international=True),
    ]
    header, view = png_chunks.HEADER_BYTES, memoryview(png)  # megabytes are copied once
    return b"".join([view[:header], *chunks, view[header:]])


def prompt_in(file: Container) -> str | None:
    """Return the whole prompt of an image that this service made, or None."""
    in_png = None if file.record is None else _prompt_of(file.record)
    if in_png is not None or not file.xmp:
        return in_png
    text = xmp.record_in(file.xmp)
    return None if text is None else _prompt_of(text)


def _prompt_of(record: str) -> str | None:
    """Return the prompt in the text of a record, or None.

    Anybody can write such a text, so it is trusted no more than a caller's.
    """
    if len(record) > _MAX_RECORD_CHARS:
        return None
    try:
        prompt = json.loads(record)["prompt"]
        prompt.encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return (
        prompt if isinstance(prompt, str) and 0 < len(prompt) <= MAX_JOINED_PROMPT_CHARS else None
    )


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value
