"""What Gemini answers: the image in it, or the error that it comes to.

The image may stand behind texts, and a refusal has several forms. Texts of the answer are never
repeated: they may quote the prompt, and they are not ours.
"""

from base64 import b64decode

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from serve_app.cloud.cloud_image import as_png
from serve_app.core.cloud_errors import WastedCall
from serve_app.core.errors import SafetyBlock

_URL_SAFE = str.maketrans("-_", "+/")
_UNKNOWN = "UNSPECIFIED"  # how names end that say nothing
_REFUSALS = frozenset(  # `finishReason`s that blame the prompt or the image
    {
        *("SAFETY", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "RECITATION"),
        *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
    }
)
_REFUSED = "the cloud's safety filter refused"
_REMEDY = "Change the prompt or the image"


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", hide_input_in_errors=True)


class InlineData(_Model):
    """A file within an answer."""

    data: str = ""  # base64


class Part(_Model):
    """A piece of an answer: a text, an image, or a thought, which may be a draft of one."""

    text: str | None = None
    inline_data: InlineData | None = None
    thought: bool | None = None


class Content(_Model):
    """The pieces of one candidate."""

    parts: list[Part] | None = None


class Candidate(_Model):
    """One of the answers, of which there is one in practice."""

    content: Content | None = None
    finish_reason: str | None = None


class PromptFeedback(_Model):
    """Why a prompt was refused before anything was made."""

    block_reason: str | None = None


class Answer(_Model):
    """What `generateContent` returns, as far as it matters here."""

    candidates: list[Candidate] | None = None
    prompt_feedback: PromptFeedback | None = None


def png_of(content: bytes) -> bytes:
    """Return the first image of an answer, as a PNG. It takes time: not on an event loop.

    Raises `SafetyBlock`, or `WastedCall` for an answer that is none or has no image.
    """
    try:
        answer = Answer.model_validate_json(content)
    except ValidationError:
        raise WastedCall("the cloud's answer can't be read") from None
    feedback = answer.prompt_feedback
    if feedback and feedback.block_reason and not feedback.block_reason.endswith(_UNKNOWN):
        raise SafetyBlock(f"{_REFUSED} the prompt", remedy=_REMEDY)
    candidates = answer.candidates or []
    if any(candidate.finish_reason in _REFUSALS for candidate in candidates):
        raise SafetyBlock(f"{_REFUSED} the image", remedy=_REMEDY)
    parts = [
        part
        for candidate in candidates
        for part in (candidate.content and candidate.content.parts) or ()
    ]
    for part in parts:
        if part.inline_data and part.inline_data.data and not part.thought:
            return as_png(_decoded(part.inline_data.data))
    if any(part.text for part in parts):
        raise WastedCall(
            "the cloud's model answered with words and no image",
            remedy="Say in the prompt what the picture should show, or try again",
        )
    raise WastedCall("the cloud's answer has no image")


def _decoded(data: str) -> bytes:
    """Return the bytes of a base64 text in either alphabet, as JSON of protocol buffers has it."""
    text = data.translate(_URL_SAFE).rstrip("=")
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise WastedCall("the cloud sent an image that can't be read") from None
