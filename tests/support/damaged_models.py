"""Real networks that give what is not finite: in one sample, or in all after they were loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.spec import Stage
from serve_app.runtime.build import build_stage_model
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, demo_folder
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, inspect
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.memory.model_cache import ModelCache
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.stage_model import StageModel

POISONED = "a poisoned prompt"


class DamagedDemo:
    """The demo's base model and its networks, which a test damages before or after the fitting."""

    def __init__(
        self, stage: Stage = Stage.BASE, *, device: Device | None = None, strict: bool = True
    ) -> None:
        device = device or open_device("cpu", precision="fp32", xformers=False, cpu_threads=1)
        self._device = replace(device, prepacked=False)  # prepacked weights can't be damaged
        self.checkpoint: Checkpoint = replace(
            inspect(demo_folder(stage), stage), name=FOLDER_NAMES[stage]
        )
        self.key = ModelKey(stage, self.checkpoint.name)
        self.modules: Modules = load(self.checkpoint, self._device)
        self._strict = strict

    def fit(self, **options: Any) -> StageModel:
        """Return the model, checked as at load."""
        chosen: dict[str, Any] = {"images": 2, "strict": self._strict} | options
        return build_stage_model(
            self.checkpoint, self._device, load_modules=lambda *_: self.modules, **chosen
        )

    def cache(self) -> ModelCache:
        """Return a cache of the fitted model alone."""
        return ModelCache.of(self.fit())

    def poison(self, prompt: str = POISONED) -> None:
        """Let the UNet meet a NaN in every row of this prompt, and in no other."""
        encoders = self.modules.text_encoders
        with torch.inference_mode():
            marked, _ = encoders.encode(encoders.tokenize(prompt, "prompt"), 1)

        def poison(unet: Any, args: Any, kwargs: Any) -> Any:
            rows = args[0].clone()
            for row, embeds in zip(rows, kwargs["encoder_hidden_states"], strict=True):
                if torch.equal(embeds, marked):
                    row[0, 0, 0] = torch.nan
            return (rows, *args[1:]), kwargs

        self.modules.unet.register_forward_pre_hook(poison, with_kwargs=True)

    @contextmanager
    def damaged(
        self, network: str, parameter: str, by: float = torch.nan, *, row: int = 0
    ) -> Iterator[None]:
        """Change the first weight of a row, as a fault of the memory does; mend it at the end.

        `network` is a field of `Modules`, or "text_encoder"; the parameter's name may be the end.
        """
        encoders = self.modules.text_encoders.networks
        found = encoders[0] if network == "text_encoder" else getattr(self.modules, network)
        (weights,) = (w.data for name, w in found.named_parameters() if name.endswith(parameter))
        sound = weights.clone()
        weights[row].view(-1)[0] += by
        try:
            yield
        finally:
            weights.copy_(sound)

    @contextmanager
    def scaled(self, layer: str, factor: float) -> Iterator[None]:
        """Scale one layer of the VAE's decoder; mend it at the end.

        The GroupNorm after `conv_in` evens a factor out, but fp16 overflows before that.
        """
        parameters = list(self.modules.vae.decoder.get_submodule(layer).parameters())
        sound = [parameter.data.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.data.mul_(factor)
        try:
            yield
        finally:
            for parameter, original in zip(parameters, sound, strict=True):
                parameter.data.copy_(original)
