"""Generation metadata of a PNG: written into it, and read back.

Chunks are added to a file that is already encoded: `parameters`, the text that AUTOMATIC1111
introduced and most tools read; `aura`, a JSON record from which the image can be made again; and
an XMP packet with IPTC's DigitalSourceType, which tells machines that a model made the image.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from serve_app.core.diffusion.spec import ImageSpec

RECORD = "aura"
INFOTEXT = "parameters"
MAX_JOINED_PROMPT_CHARS = 8000  # after any number of refinements
_MAX_RECORD_CHARS = 400_000  # four prompts, each character escaped
_HEADER_BYTES = 8 + 25  # the signature and the IHDR chunk, which must come first
_XMP = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    " Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>'
    "</rdf:RDF></x:xmpmeta>"
    '<?xpacket end="r"?>'
)


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


def embed(png: bytes, text: str, record: GenerationRecord) -> bytes:
    """Return the PNG with its metadata; equal inputs give equal bytes."""
    chunks = [
        _text_chunk(INFOTEXT, text),
        _text_chunk(RECORD, record.as_json()),
        _text_chunk("XML:com.adobe.xmp", _XMP, international=True),
    ]
    return b"".join([png[:_HEADER_BYTES], *chunks, png[_HEADER_BYTES:]])


def read_prompt(info: Mapping[Any, Any]) -> str | None:
    """Return the whole prompt of an image that this service made, from Pillow's `info`, or None.

    Anybody can write such a chunk, so its text is trusted no more than a caller's.
    """
    text = info.get(RECORD)
    if not isinstance(text, str) or len(text) > _MAX_RECORD_CHARS:
        return None
    try:
        prompt = json.loads(text)["prompt"]
        prompt.encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return (
        prompt if isinstance(prompt, str) and 0 < len(prompt) <= MAX_JOINED_PROMPT_CHARS else None
    )


def xmp_packet() -> bytes:
    """Return the XMP packet, for formats that carry it another way."""
    return _XMP.encode()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def _text_chunk(keyword: str, text: str, *, international: bool = False) -> bytes:
    """Return a tEXt chunk if Latin-1 holds the text, else iTXt, which is UTF-8 (PNG 1.2, 4.2.3)."""
    clean = text.replace("\0", " ")
    kind, body = b"iTXt", b"\0" + b"\0\0" + b"\0\0" + clean.encode()  # uncompressed, no language
    if not international:
        with suppress(UnicodeEncodeError):
            kind, body = b"tEXt", b"\0" + clean.encode("latin-1")
    data = keyword.encode() + body
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
