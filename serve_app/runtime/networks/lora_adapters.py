"""The LoRAs of one model: attached to its networks beside their weights, which never change.

A layer that wears one adds weight * alpha / rank * B(A(x)) to what it gives: Hu et al. 2021,
through peft. To the bit as `StableDiffusionXLPipeline.load_lora_weights` and `set_adapters`, but
for files whose alphas differ from layer to layer: see `_folded`. Knows no samples. Names here are
the registry's; peft knows them by number, since a dot would end a name.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file

from serve_app.core.diffusion.spec import Lora
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.lora_file import ALPHA, LoraFile
from serve_app.runtime.memory.device import is_out_of_memory
from serve_app.runtime.networks.loading import Modules

_SECOND = re.compile(r"[._](lora_up|lora_B|lora\.up|lora_linear_layer\.up)\.weight$")


class LoraAdapters(Protocol):
    """What a model wears LoRAs with. The tests' double is another."""

    @property
    def attached(self) -> tuple[str, ...]:
        """The names of those that can be worn now."""

    def attach(self, name: str) -> None:
        """The LoRA can be worn. Raises `CheckpointError` when it does not fit the model."""

    def detach(self, name: str) -> None:
        """Nothing of the LoRA is in memory."""

    def activate(self, loras: tuple[Lora, ...]) -> None:
        """The networks compute with these, all of them attached, and no others."""


class PeftLoraAdapters:
    """The contract over a stage's networks, text encoders included."""

    def __init__(self, modules: Modules, files: Mapping[str, LoraFile]) -> None:
        self._pipeline = modules.pipeline
        self._networks = (modules.unet, *modules.text_encoders.networks)
        self._files = dict(files)
        self._numbers = {name: f"lora{number}" for number, name in enumerate(self._files)}
        self._attached: list[str] = []
        self._active: tuple[Lora, ...] = ()
        self._layers: tuple[Any, ...] = ()

    @property
    def attached(self) -> tuple[str, ...]:
        """See `Adapters`."""
        return tuple(self._attached)

    def attach(self, name: str) -> None:
        """See `Adapters`. Not one number of the file may be left over: diffusers would say so in
        its log alone."""
        file, number = self._files[name], self._numbers[name]
        self.activate(())
        try:
            if (
                not file.is_unchanged
            ):  # texts are remembered by its name, and other replicas have it
                raise ValueError("it was changed after the service started")
            self._read(file.path, number)
            placed = self._placed(number)
            if placed != file.num_parameters:
                raise ValueError(
                    f"{placed} of its {file.num_parameters} numbers have a place there"
                )
        except Exception as error:  # a foreign file fails in many ways, all of them mean no
            self._pipeline.delete_adapters(number)
            if is_out_of_memory(error):
                raise
            raise CheckpointError(f"the LoRA {name} does not fit the model") from error
        self._attached.append(name)

    def detach(self, name: str) -> None:
        """See `Adapters`."""
        self.activate(())
        self._pipeline.delete_adapters(self._numbers[name])
        self._attached.remove(name)

    def activate(self, loras: tuple[Lora, ...]) -> None:
        """See `Adapters`."""
        if loras != self._active:
            self._active = loras
            self._set_active_layers()

    def _read(self, path: Path, number: str) -> None:
        """The file is attached; worn is what was worn before: diffusers has it worn at once."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several: yes
                self._pipeline.load_lora_weights(
                    _with_alpha_folded_in(path) or str(path.parent),
                    weight_name=path.name,
                    adapter_name=number,
                    local_files_only=True,
                )
        finally:
            for network in self._networks:
                network.eval()  # a file may ask for dropout
            modules = (module for network in self._networks for module in network.modules())
            self._layers = tuple(module for module in modules if isinstance(module, BaseTunerLayer))
            self._set_active_layers()

    def _set_active_layers(self) -> None:
        worn = {self._numbers[lora.name]: lora.weight for lora in self._active}
        for layer in self._layers:
            names = [name for name in worn if name in layer.scaling]
            if names or layer.active_adapters:
                layer.set_adapter(names, inference_mode=True)
            for name in names:
                layer.set_scale(name, worn[name])

    def _placed(self, number: str) -> int:
        """How many numbers of a LoRA are in the networks."""
        named = (pair for network in self._networks for pair in network.named_parameters())
        return sum(tensor.numel() for name, tensor in named if f".{number}." in name)


def _with_alpha_folded_in(path: Path) -> dict[str, torch.Tensor] | None:
    """The LoRA without alphas: each layer's alpha / rank is in its second part, in fp32.

    None where the file can be left to diffusers, which is right when all alphas are one number, or
    there are none: of several it matches most with no layer, and gives those the commonest.
    """
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.endswith(ALPHA)]  # noqa: SIM118  no dict
        alphas = {name.removesuffix(ALPHA): float(file.get_tensor(name)) for name in names}
    if len(set(alphas.values())) < 2 and all(name.startswith("lora_") for name in alphas):
        return None
    tensors = {name: one for name, one in load_file(path).items() if not name.endswith(ALPHA)}
    for name, second in tensors.items():
        alpha = alphas.get(_SECOND.sub("", name))
        if alpha is not None:
            tensors[name] = second.float() * (alpha / second.shape[1])
    return tensors
