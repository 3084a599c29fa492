"""`ModelTable`: the base models of a service, by name."""

from collections.abc import Sequence

from serve_app.core.diffusion.spec import ImageSpec
from serve_app.core.errors import model_not_found
from serve_app.core.service.info import ModelInfo


class ModelTable:
    """The base models that images may name, of which the first is the default."""

    def __init__(self, models: Sequence[ModelInfo]) -> None:
        self._by_name = {model.name: model for model in models}
        self._default = models[0]

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, spec: ImageSpec) -> ModelInfo:
        """Return the model of a spec. Raises `ModelNotFound`."""
        model = self._by_name.get(spec.model) if spec.model else self._default
        if model is None:
            raise model_not_found("model", self._by_name)
        return model

    def label(self, spec: ImageSpec) -> str:
        """Return a spec's model as a metric's label: what else a caller wrote is "unknown"."""
        name = spec.model or self._default.name
        return name if name in self._by_name else "unknown"
