"""Which of the service's models a request means.

Knows no routes and no checkpoints. What was asked for is never repeated: it may be a path.
"""

from serve_app.core.errors import InvalidRequest, ModelNotFound
from serve_app.core.service.info import ModelInfo, ServiceInfo


def find_model(facts: ServiceInfo, name: str | None, nested: str | None = None) -> ModelInfo:
    """The base model that `model` names, or `config.modelPath`, where the refiner may stand too;
    the default one when nobody names any.

    Raises `ModelNotFound` with the names there are, `InvalidRequest` when the two disagree.
    """
    named = None if name is None else _found(facts, "model", name)
    if nested is None or nested == facts.refiner:
        return named or facts.default_model
    model = _found(facts, "config.modelPath", nested)
    if named is not None and named != model:
        raise InvalidRequest("config.modelPath", f"is {model.name}, but model says {named.name}")
    return model


def not_found(path: str, names: tuple[str, ...]) -> ModelNotFound:
    """The error for a name that is none of these."""
    return ModelNotFound(f"{path} names no model of this service; there is {', '.join(names)}")


def _found(facts: ServiceInfo, path: str, name: str) -> ModelInfo:
    model = facts.find_model(name)
    if model is None:
        more = (facts.refiner,) if facts.refiner and path != "model" else ()
        raise not_found(path, (*facts.model_names, *more))
    return model
