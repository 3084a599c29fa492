"""The models and LoRAs that a request names, found among those of the service.

An error never repeats the name that was sent: it may be a path.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Lora
from serve_app.core.errors import InvalidRequest, ModelNotFound, model_not_found
from serve_app.core.service.info import ModelInfo, ServiceInfo

_TAG = "<lora:"  # how AUTOMATIC1111's prompts name a LoRA


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """A LoRA that a request names; None leaves the weight to the operator's default."""

    name: str
    weight: float | None = None


def find_model(info: ServiceInfo, name: str | None, field: str = "model") -> ModelInfo:
    """Return the base model of a name, or the default model for None.

    Raises `ModelNotFound` with the names of all models; `field` is where the name stood.
    """
    if name is None:
        return info.default_model
    model = info.find_model(name)
    if model is None:
        raise model_not_found(field, info.model_names)
    return model


def find_loras(
    choices: Sequence[LoraChoice], model: ModelInfo, info: ServiceInfo
) -> tuple[Lora, ...]:
    """Return the LoRAs of a request, in its order, for images of a model.

    Raises `ModelNotFound` for an unknown name, with the names of all LoRAs, and `InvalidRequest`
    for a LoRA that does not fit the model or is named twice, and for too many.
    """
    loras: list[Lora] = []
    for number, choice in enumerate(choices):
        field = f"loras.{number}.name"
        lora = info.find_lora(choice.name)
        if lora is None:
            names = ", ".join(lora.name for lora in info.loras) or "none"
            raise ModelNotFound(
                "names no LoRA of this service", subject=field, remedy=f"Available: {names}"
            )
        if model.name not in lora.models:
            raise InvalidRequest(
                field,
                f"is {lora.name}, which was not made for the model {model.name}; "
                f"it fits {', '.join(lora.models)}",
            )
        if any(lora.name == previous.name for previous in loras):
            raise InvalidRequest(field, f"names {lora.name} a second time")
        loras.append(
            Lora(lora.name, lora.default_weight if choice.weight is None else choice.weight)
        )
    active = sum(bool(lora.weight) for lora in loras)
    if active > info.max_loras:
        raise InvalidRequest("loras", f"must name at most {info.max_loras} LoRAs, got {active}")
    return tuple(loras)


def lora_warnings(prompt: str, spec: ImageSpec, info: ServiceInfo) -> tuple[str, ...]:
    """Return what a caller should know of the LoRAs in the prompt as it was sent, and the spec."""
    warnings = []
    if _TAG in prompt:
        warnings.append(f"{_TAG}…> in the prompt is read as text; name LoRAs in the field loras")
    model = info.find_model(spec.model or info.default_model.name)
    if spec.loras and model and spec.handoff < 1:
        schedule = make_schedule(
            model.noise_config, spec.sampler, spec.steps, spec.strength, spec.handoff
        )
        if schedule.handoff_index <= schedule.start_index:
            warnings.append("loras are ignored: the refiner makes this image alone, without LoRAs")
        else:
            warnings.append("loras apply to the base stage only: the refiner runs without them")
    return tuple(warnings)
