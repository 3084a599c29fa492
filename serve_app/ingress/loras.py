"""Which LoRAs of the service a request's pictures are to wear.

Knows no routes and no files. What was asked for is never repeated: it may be a path.
"""

from collections.abc import Sequence

from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec, Lora
from serve_app.core.errors import InvalidRequest, ModelNotFound
from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress.native.schemas import LoraField

_TAG = "<lora:"  # how AUTOMATIC1111's prompts name one


def find_loras(
    asked: Sequence[LoraField], model: ModelInfo, facts: ServiceInfo
) -> tuple[Lora, ...]:
    """The LoRAs that `loras` names, in its order, for pictures of a model.

    Raises `ModelNotFound` with the names there are, `InvalidRequest` for one that does not fit.
    """
    worn: list[Lora] = []
    for number, field in enumerate(asked):
        found = facts.find_lora(field.name)
        if found is None:
            there = ", ".join(lora.name for lora in facts.loras) or "none"
            raise ModelNotFound(
                f"loras.{number}.name names no LoRA of this service; there is {there}"
            )
        if model.name not in found.models:
            fits = ", ".join(found.models)
            raise InvalidRequest(
                f"loras.{number}.name",
                f"is {found.name}, which is not made for the model {model.name}; it fits {fits}",
            )
        if any(lora.name == found.name for lora in worn):
            raise InvalidRequest(f"loras.{number}.name", f"is {found.name} a second time")
        worn.append(
            Lora(found.name, found.default_weight if field.weight is None else field.weight)
        )
    if sum(bool(lora.weight) for lora in worn) > facts.max_loras:
        raise InvalidRequest("loras", f"may be {facts.max_loras} at once, got {len(worn)}")
    return tuple(worn)


def lora_warnings(prompt: str, spec: ImageSpec, facts: ServiceInfo) -> tuple[str, ...]:
    """What an asker should know of the LoRAs that the prompt, as it was sent, or the spec names."""
    said = []
    if _TAG in prompt:
        said.append(f"{_TAG}…> in the prompt is read as words: name LoRAs in the field loras")
    model = facts.find_model(spec.model or facts.default_model.name)
    if spec.loras and model and spec.handoff < 1:
        schedule = make_schedule(
            model.noise_config, spec.sampler, spec.steps, spec.strength, spec.handoff
        )
        if schedule.handoff_index <= schedule.start_index:
            said.append("loras are ignored: the refiner works alone, and wears none")
        else:
            said.append("loras count in base alone: the refiner goes on without them")
    return tuple(said)
