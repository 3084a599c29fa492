"""LoRA, the first kind of extension: low-rank updates beside the weights, which never change.

A layer with an active LoRA adds weight * alpha / rank * B(A(x)) to its output (Hu et al. 2021),
through peft. Where no layer computes by row or is prepacked (see `runtime.networks`), it is equal
to the bit to `StableDiffusionXLPipeline.load_lora_weights` and `set_adapters`, except for files
whose alphas differ between layers: see `lora_weights`. The file's layers are found by
`LoraFile.place` instead of diffusers' converters, which lose those that they don't know. peft knows
the LoRAs by number, since a dot would end a name.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.inputs import ImageInputs
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.lora_file import LoraFile, PlacedLayer
from serve_app.runtime.checkpoints.model_layers import NETWORKS, ModelLayers, layer_name
from serve_app.runtime.extensions.contract import ExtensionKind
from serve_app.runtime.extensions.lora_weights import LayerWeights, read_tensors, read_weights
from serve_app.runtime.memory.device import is_out_of_memory
from serve_app.runtime.networks.kept_conditioning import forget_conditioning
from serve_app.runtime.networks.loading import Modules
from serve_app.runtime.networks.prepacked import keep_plain_weights
from serve_app.runtime.networks.row_layers import RowLinear, aligned, become_row_linear

# Numbers that an active LoRA adds to a UNet call at its peak, for each row and pixel of the image:
# counted with SDXL's own UNet, like the 91 of a plain call. Several LoRAs add no more than one.
_WORK_PER_PIXEL = 20


class LoraKind(ExtensionKind[LoraFile]):
    """The kind as the registry names it; see `ExtensionKind`."""

    work_per_pixel = float(_WORK_PER_PIXEL)

    def num_bytes(self, file: LoraFile, dtype: torch.dtype) -> int:
        """Return the bytes of its parameters."""
        return file.num_parameters * dtype.itemsize

    def check_values(self, file: LoraFile) -> None:
        """Read the whole file, and check that its values are finite."""
        try:
            read_tensors(file)
        except CheckpointError as error:
            raise error.about(str(file.path)) from None

    def open(self, modules: Modules, files: Mapping[str, LoraFile]) -> "LoraExtension":
        """Return the LoRAs of one model."""
        return LoraExtension(modules, files)


class LoraExtension:
    """The LoRAs of a stage's networks, text encoders included; see `ModelExtension`."""

    def __init__(self, modules: Modules, files: Mapping[str, LoraFile]) -> None:
        networks = (modules.unet, *modules.text_encoders.networks)
        self._networks: dict[str, nn.Module] = dict(zip(NETWORKS, networks, strict=True))
        self._modules = {  # the names of layers' modules, by network and diffusers' name
            network: {
                layer_name(network, name): name
                for name, module in of_network.named_modules()
                if isinstance(module, nn.Linear | nn.Conv2d)
            }
            for network, of_network in self._networks.items()
        }
        self._model = ModelLayers(
            "the model",
            {
                network: {
                    layer: tuple(self._networks[network].get_parameter(f"{name}.weight").shape)
                    for layer, name in names.items()
                }
                for network, names in self._modules.items()
            },
        )
        self._files = dict(files)
        self._adapter_names = {name: f"lora{number}" for number, name in enumerate(self._files)}
        self._attached: list[str] = []
        self._active: tuple[ExtensionRef, ...] = ()
        self._layers: tuple[LoraLayer, ...] = ()

    @property
    def attached(self) -> tuple[str, ...]:
        """The names of the LoRAs that can be activated now."""
        return tuple(self._attached)

    def attach(self, name: str) -> None:
        """Load a LoRA into the networks.

        Raises `CheckpointError`, whose subject is the file, when it does not fit, was changed since
        it was inspected, or holds a value that is not finite.
        """
        file, adapter = self._files[name], self._adapter_names[name]
        self._set_active(())
        try:
            # Embeddings are cached by the LoRA's name, and other replicas have the earlier file.
            if not file.is_unchanged:
                raise CheckpointError("was changed after the service started")
            places = file.place(self._model)
            self._inject(adapter, places, read_weights(file, places))
        except Exception as error:  # a foreign file fails in many ways
            self._remove(adapter)
            if is_out_of_memory(error):
                raise
            subject = f"the LoRA {name} ({file.path})"
            if isinstance(error, CheckpointError):
                raise error.about(subject) from None
            raise CheckpointError("can't be loaded", subject=subject) from error
        self._attached.append(name)

    def detach(self, name: str) -> None:
        """Remove a LoRA from the networks."""
        self._set_active(())
        self._remove(self._adapter_names[name])
        self._attached.remove(name)

    def activate(self, refs: tuple[ExtensionRef, ...], rows: Sequence[ImageInputs]) -> None:
        """Let the networks compute with these LoRAs and no others, whatever the rows are."""
        self._set_active(refs)

    def _inject(
        self, adapter: str, places: Sequence[PlacedLayer], weights: Sequence[LayerWeights]
    ) -> None:
        """Give layers their weights of a LoRA; those with equal configs get them together."""
        groups: dict[tuple[str, int, float, bool, bool], dict[str, LayerWeights]] = {}
        for place, layer in zip(places, weights, strict=True):
            is_dora, has_bias = layer.magnitude is not None, layer.bias is not None
            group = (place.network, layer.rank, layer.alpha, is_dora, has_bias)
            name = self._modules[place.network][place.layer]
            groups.setdefault(group, {})[name] = layer
        for (network, rank, alpha, is_dora, has_bias), layers in groups.items():
            for name in layers if is_dora else ():  # peft reads the weights that it changes
                module = self._networks[network].get_submodule(name)
                own = module.get_base_layer() if isinstance(module, LoraLayer) else module
                keep_plain_weights(own, kept=True)
            config = LoraConfig(
                target_modules=list(layers),
                r=rank,
                lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it, whole or not
                use_dora=is_dora,
                lora_bias=has_bias,
                inference_mode=True,
            )
            names = {f"{name}.lora_A.weight": layer.down for name, layer in layers.items()}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several: yes
                inject_adapter_in_model(config, self._networks[network], adapter, state_dict=names)
            for name, layer in layers.items():
                _fill(self._networks[network].get_submodule(name), adapter, layer)
        self._find_layers()

    def _remove(self, adapter: str) -> None:
        """Remove a LoRA from the networks, as far as it got."""
        self._find_layers()
        for layer in self._layers:
            layer.delete_adapter(adapter)
        for network in self._networks.values():
            getattr(network, "peft_config", {}).pop(adapter, None)
        self._find_layers()

    def _find_layers(self) -> None:
        """Find the layers with LoRAs, of which peft activates each one that it injects."""
        modules = [module for network in self._networks.values() for module in network.modules()]
        self._layers = tuple(module for module in modules if isinstance(module, LoraLayer))
        read = {layer.get_base_layer() for layer in self._layers if layer.lora_magnitude_vector}
        for module in modules:  # also those of an attach that failed
            keep_plain_weights(module, kept=module in read)
        self._set_active_layers()

    def _set_active(self, refs: tuple[ExtensionRef, ...]) -> None:
        if refs != self._active:
            self._active = refs
            self._set_active_layers()

    def _set_active_layers(self) -> None:
        forget_conditioning(self._networks["unet"])
        weights = {self._adapter_names[ref.name]: ref.weight for ref in self._active}
        for layer in self._layers:
            adapters = [adapter for adapter in weights if adapter in layer.scaling]
            if adapters or layer.active_adapters:
                layer.set_adapter(adapters, inference_mode=True)
            for adapter in adapters:
                layer.set_scale(adapter, weights[adapter])


def _fill(layer: nn.Module, adapter: str, weights: LayerWeights) -> None:
    """Put the weights into the parts of a layer's LoRA, in the dtype of the layer itself."""
    assert isinstance(layer, LoraLayer)  # peft wraps every layer that the state dict names
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    parts = [(down.weight, weights.down), (up.weight, weights.up)]
    if weights.bias is not None:
        parts.append((up.bias, weights.bias))
    if weights.magnitude is not None:
        parts.append((layer.lora_magnitude_vector[adapter].weight, weights.magnitude))
    # peft puts a unit matrix through the parts of a DoRA, which by row would take long.
    if isinstance(layer.get_base_layer(), RowLinear) and weights.magnitude is None:
        become_row_linear(down)
        become_row_linear(up)
    base = layer.get_base_layer().weight
    assert isinstance(base, torch.Tensor)
    for parameter, tensor in parts:
        assert isinstance(parameter, torch.Tensor)
        parameter.data = aligned(tensor.reshape(parameter.shape).to(base.device, base.dtype))
        parameter.requires_grad_(False)
