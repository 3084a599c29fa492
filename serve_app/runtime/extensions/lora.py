"""LoRA, the first kind of extension: low-rank updates beside the weights, which never change.

A layer with an active LoRA adds weight * alpha / rank * B(A(x)) to its output (Hu et al. 2021),
through peft. Equal to the bit to `StableDiffusionXLPipeline.load_lora_weights` and `set_adapters`,
except for files whose alphas differ between layers: see `_with_alpha_folded_in`. peft knows the
LoRAs by number, since a dot would end a name.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.lora_file import ALPHA, LoraFile
from serve_app.runtime.extensions.contract import ExtensionKind
from serve_app.runtime.memory.device import is_out_of_memory
from serve_app.runtime.networks.loading import Modules

# Numbers that an active LoRA adds to a UNet call at its peak, for each row and pixel of the image:
# counted with SDXL's own UNet, like the 79 of a plain call. Several LoRAs add no more than one.
_WORK_PER_PIXEL = 20
_UP_WEIGHT = re.compile(r"[._](lora_up|lora_B|lora\.up|lora_linear_layer\.up)\.weight$")


class LoraKind(ExtensionKind[LoraFile]):
    """The kind as the registry names it; see `ExtensionKind`."""

    work_per_pixel = float(_WORK_PER_PIXEL)

    def num_bytes(self, file: LoraFile, dtype: torch.dtype) -> int:
        """Return the bytes of its parameters."""
        return file.num_parameters * dtype.itemsize

    def open(self, modules: Modules, files: Mapping[str, LoraFile]) -> "LoraExtension":
        """Return the LoRAs of one model."""
        return LoraExtension(modules, files)


class LoraExtension:
    """The LoRAs of a stage's networks, text encoders included; see `ModelExtension`."""

    def __init__(self, modules: Modules, files: Mapping[str, LoraFile]) -> None:
        self._pipeline = modules.pipeline
        self._networks = (modules.unet, *modules.text_encoders.networks)
        self._files = dict(files)
        self._adapter_names = {name: f"lora{number}" for number, name in enumerate(self._files)}
        self._attached: list[str] = []
        self._active: tuple[ExtensionRef, ...] = ()
        self._layers: tuple[Any, ...] = ()

    @property
    def attached(self) -> tuple[str, ...]:
        """The names of the LoRAs that can be activated now."""
        return tuple(self._attached)

    def attach(self, name: str) -> None:
        """Load a LoRA into the networks. Raises `CheckpointError` when it does not fit.

        Every parameter of the file must find its place: diffusers only logs those that don't.
        """
        file, adapter = self._files[name], self._adapter_names[name]
        self._set_active(())
        try:
            # Embeddings are cached by the LoRA's name, and other replicas have the earlier file.
            if not file.is_unchanged:
                raise ValueError("it was changed after the service started")
            self._read(file.path, adapter)
            placed = self._num_placed(adapter)
            if placed != file.num_parameters:
                raise ValueError(f"{placed} of its {file.num_parameters} parameters have a place")
        except Exception as error:  # a foreign file fails in many ways
            self._pipeline.delete_adapters(adapter)
            if is_out_of_memory(error):
                raise
            raise CheckpointError("does not fit the model", subject=f"the LoRA {name}") from error
        self._attached.append(name)

    def detach(self, name: str) -> None:
        """Remove a LoRA from the networks."""
        self._set_active(())
        self._pipeline.delete_adapters(self._adapter_names[name])
        self._attached.remove(name)

    def activate(self, refs: tuple[ExtensionRef, ...], rows: Sequence[ImageInputs]) -> None:
        """Let the networks compute with these LoRAs and no others, whatever the rows are."""
        self._set_active(refs)

    def _read(self, path: Path, adapter: str) -> None:
        """Load the file, and keep what was active: diffusers activates a LoRA that it loads."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several: yes
                self._pipeline.load_lora_weights(
                    _with_alpha_folded_in(path) or str(path.parent),
                    weight_name=path.name,
                    adapter_name=adapter,
                    local_files_only=True,
                )
        finally:
            for network in self._networks:
                network.eval()  # a file may ask for dropout
            modules = (module for network in self._networks for module in network.modules())
            self._layers = tuple(module for module in modules if isinstance(module, BaseTunerLayer))
            self._set_active_layers()

    def _set_active(self, refs: tuple[ExtensionRef, ...]) -> None:
        if refs != self._active:
            self._active = refs
            self._set_active_layers()

    def _set_active_layers(self) -> None:
        weights = {self._adapter_names[ref.name]: ref.weight for ref in self._active}
        for layer in self._layers:
            adapters = [adapter for adapter in weights if adapter in layer.scaling]
            if adapters or layer.active_adapters:
                layer.set_adapter(adapters, inference_mode=True)
            for adapter in adapters:
                layer.set_scale(adapter, weights[adapter])

    def _num_placed(self, adapter: str) -> int:
        """Return how many parameters of a LoRA are in the networks."""
        named = (pair for network in self._networks for pair in network.named_parameters())
        return sum(tensor.numel() for name, tensor in named if f".{adapter}." in name)


def _with_alpha_folded_in(path: Path) -> dict[str, torch.Tensor] | None:
    """Return the LoRA's tensors without alphas: alpha / rank is in each layer's up weight, in fp32.

    None where the file can be left to diffusers, which is right when all alphas are equal or there
    are none. Of several alphas it matches most with no layer, and gives those the commonest one.
    """
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.endswith(ALPHA)]  # noqa: SIM118  no dict
        alphas = {name.removesuffix(ALPHA): float(file.get_tensor(name)) for name in names}
    if len(set(alphas.values())) < 2 and all(name.startswith("lora_") for name in alphas):
        return None
    loaded = load_file(path)
    tensors = {name: tensor for name, tensor in loaded.items() if not name.endswith(ALPHA)}
    for name, up in tensors.items():
        alpha = alphas.get(_UP_WEIGHT.sub("", name))
        if alpha is not None:
            tensors[name] = up.float() * (alpha / up.shape[1])
    return tensors
