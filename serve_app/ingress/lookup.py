"""The models and extensions that a request names, found among those of the service.

An error never repeats the name that was sent: it may be a path.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serve_app.core.diffusion.extensions import LORA, ExtensionRef, kind_label
from serve_app.core.diffusion.prompt_schedule import last_change
from serve_app.core.diffusion.schedule import make_schedule
from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.diffusion.step_kind import is_guided_at
from serve_app.core.errors import InvalidRequest, ModelNotFound, model_not_found
from serve_app.core.service.info import ModelInfo, ServiceInfo


@dataclass(frozen=True, slots=True)
class ExtensionChoice:
    """An extension that a request names; None leaves the weight to the operator's default."""

    name: str
    weight: float | None = None
    kind: str = LORA
    field: str = "loras"  # of the request


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


def find_extensions(
    choices: Sequence[ExtensionChoice], model: ModelInfo, info: ServiceInfo
) -> tuple[ExtensionRef, ...]:
    """Return the extensions of a request, in its order, for images of a model.

    Raises `ModelNotFound` for an unknown name, with all names of the kind, and `InvalidRequest`
    for an extension that does not fit the model or is named twice, and for too many.
    """
    refs: list[ExtensionRef] = []
    numbers = Counter[str]()  # of choices so far, by field
    for choice in choices:
        field = f"{choice.field}.{numbers[choice.field]}.name"
        numbers[choice.field] += 1
        extension = info.find_extension(choice.kind, choice.name)
        if extension is None:
            names = ", ".join(known.name for known in info.extensions_of(choice.kind)) or "none"
            raise ModelNotFound(
                "is unknown",
                subject=field,
                remedy=f"Available: {names}",
            )
        if model.name not in extension.models:
            raise InvalidRequest(
                field,
                f"is {extension.name}, which was not made for the model {model.name}; "
                f"it fits {', '.join(extension.models)}",
            )
        if any(extension.key == previous.key for previous in refs):
            raise InvalidRequest(field, f"names {extension.name} a second time")
        weight = extension.default_weight if choice.weight is None else choice.weight
        refs.append(ExtensionRef(*extension.key, weight))
    active = sum(bool(ref.weight) for ref in refs)
    if active > info.max_extensions:
        fields, kinds = _fields_and_kinds(choices)
        problem = f"must name at most {info.max_extensions} {kinds}, got {active}"
        raise InvalidRequest(fields, problem)
    return tuple(refs)


def extension_warnings(
    choices: Sequence[ExtensionChoice], spec: ImageSpec, info: ServiceInfo
) -> tuple[str, ...]:
    """Return what a caller should know of the extensions that a request chose."""
    warnings = []
    model = info.find_model(spec.model or info.default_model.name)
    if spec.extensions and model and spec.handoff < 1:
        fields, kinds = _fields_and_kinds(choices)
        schedule = make_schedule(
            model.noise_config, spec.sampler, spec.steps, spec.strength, spec.handoff
        )
        if schedule.handoff_index <= schedule.start_index:
            warnings.append(
                f"{fields} are ignored: the refiner makes this image alone, without {kinds}"
            )
        else:
            warnings.append(f"{fields} apply to the base stage only: the refiner runs without them")
    return tuple(warnings)


def vocabulary_warnings(prompts: Iterable[str], model: ModelInfo) -> tuple[str, ...]:
    """Return a warning if one of the prompts names nothing that the model can draw."""
    vocabulary = model.vocabulary
    if vocabulary is None or all(map(vocabulary.covers, prompts)):
        return ()
    return (
        f"the prompt names nothing that the model {model.name} can draw: it knows only "
        f"{vocabulary.summary}",
    )


def schedule_warnings(specs: Iterable[ImageSpec]) -> tuple[str, ...]:
    """Return a warning for each prompt with an edit that no step which runs comes after."""
    named = (
        (prompt, name, spec.steps, spec.running_steps)
        for spec in specs
        for prompt, name in (
            (spec.prompt, "prompt"),
            (spec.negative_prompt or "", "negative prompt"),
        )
    )
    return tuple(
        f"[from:to:when] in the {name} comes too late: it changes after step {change} of {steps}, "
        f"and {running} {'runs' if running == 1 else 'run'}"
        for prompt, name, steps, running in dict.fromkeys(named)
        if (change := last_change(prompt, steps)) >= running
    )


def interval_warnings(
    chosen: tuple[float, float] | None, spec: ImageSpec, model: ModelInfo
) -> tuple[str, ...]:
    """Return a warning if guidance is off at every step: always, or by its interval.

    `chosen` is the interval of the request; the spec's may be the model's own.
    """
    if not spec.is_guided:
        text = "guidanceInterval is ignored: guidance is off at a scale of 1 or below"
        return (text,) if chosen else ()
    if spec.guidance_interval is None:
        return ()
    schedule = make_schedule(
        model.noise_config, spec.sampler, spec.steps, spec.strength, spec.handoff
    )
    running = range(schedule.start_index, len(schedule))
    if any(is_guided_at(spec, schedule, index) for index in running):
        return ()
    low, high = spec.guidance_interval
    sigmas = [schedule.sigmas[index] for index in running]
    return (
        f"no step is guided: guidanceInterval is {low:g} to {high:g}, and the noise levels of the "
        f"steps are {sigmas[-1]:.3g} to {sigmas[0]:.3g}",
    )


def _fields_and_kinds(choices: Sequence[ExtensionChoice]) -> tuple[str, str]:
    fields = dict.fromkeys(choice.field for choice in choices)
    kinds = dict.fromkeys(f"{kind_label(choice.kind)}s" for choice in choices)
    return " and ".join(fields), " and ".join(kinds)
