"""The LoRAs that a prompt names, as in `<lora:ink:0.8>`, and what can't be followed in prompts.

A warning never repeats a name that was sent: it may be a path.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.core.diffusion.extensions import LORA, WEIGHT_RANGE
from serve_app.core.diffusion.prompt_marks import (
    PromptTag,
    changes_tags,
    mark_warnings,
    read_tags,
)
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress.lookup import ExtensionChoice


@dataclass(frozen=True, slots=True)
class ReadPrompts:
    """The prompts of a request without tags of extensions, and what the tags chose."""

    prompt: str
    negative_prompt: str | None
    extensions: tuple[ExtensionChoice, ...]
    warnings: tuple[str, ...]


def read_prompts(
    prompt: str,
    negative_prompt: str | None,
    named: tuple[ExtensionChoice, ...],
    model: ModelInfo,
    info: ServiceInfo,
) -> ReadPrompts:
    """Return the prompts of a request for images of a model, with the LoRAs that they name.

    `named` are the request's own extensions: they keep their weights, and come first. Raises
    `InvalidRequest` when nothing of the prompt is left.
    """
    text, tags = read_tags(prompt)
    if not text:
        raise InvalidRequest("prompt", "must have words besides the LoRAs that it names")
    choices, warnings = _choices(tags, named, model, info)
    if choices and changes_tags(prompt):
        warnings.append(
            "<lora:…> in [from:to:when] or [a|b] is active at every step: only words change"
        )
    negative = negative_prompt
    if negative is not None:
        negative, negative_tags = read_tags(negative)
        if negative_tags:
            warnings.append("<lora:…> in the negative prompt is left out: name it in the prompt")
    warnings += mark_warnings(text, "prompt")
    warnings += mark_warnings(negative or "", "negative prompt")
    return ReadPrompts(text, negative, (*named, *choices), tuple(dict.fromkeys(warnings)))


def _choices(
    tags: Sequence[PromptTag],
    named: Sequence[ExtensionChoice],
    model: ModelInfo,
    info: ServiceInfo,
) -> tuple[list[ExtensionChoice], list[str]]:
    """Return the choices of a prompt's tags, and warnings of what is left out of them."""
    choices: list[ExtensionChoice] = []
    warnings = []
    available = ", ".join(
        known.name for known in info.extensions_of(LORA) if model.name in known.models
    )
    low, high = WEIGHT_RANGE
    for tag in tags:
        known = info.find_extension(LORA, tag.name) if tag.is_lora else None
        mark = f"<{tag.kind}:…> in the prompt"
        if not tag.is_lora:
            warnings.append(f"{mark} is left out: there are no hypernetworks")
        elif known is None or model.name not in known.models:
            warnings.append(
                f"{mark} is left out: it names no LoRA for {model.name}. Available: "
                f"{available or 'none'}"
            )
        elif tag.name in {choice.name for choice in (*named, *choices) if choice.kind == LORA}:
            warnings.append(f"{mark} is left out: it names a LoRA that is chosen already")
        else:
            weight = tag.weight
            if weight is not None and not low <= weight <= high:
                weight = min(max(low, weight), high)
                warnings.append(f"the weight of {mark} was kept between {low:g} and {high:g}")
            if not tag.is_clear:
                warnings.append(f"only the first weight of {mark} is used, and must be a number")
            choices.append(ExtensionChoice(tag.name, weight))
    return choices, warnings
