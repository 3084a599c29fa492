"""The layers of a base model that an extension may change, and the names that files give them.

Layers are called as diffusers calls them, for example `mid_block.attentions.0.proj_in`, and a text
encoder's without the `text_model.` that transformers 4 put first. Files also use the names of the
layout in which SDXL was published, and kohya's, which have `_` in place of every dot. No torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from serve_app.runtime.checkpoints.checkpoint import Checkpoint, weight_plans
from serve_app.runtime.checkpoints.weight_plan import WeightPlan

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = "unet", "text_encoder", "text_encoder_2"
NETWORKS = (UNET, TEXT_ENCODER, TEXT_ENCODER_2)

Shape = tuple[int, ...]

_WEIGHT = ".weight"
_OUTSIDE_BLOCKS = {
    "input_blocks_0_0": ("conv_in",),
    "out_2": ("conv_out",),
    "time_embed_0": ("time_embedding", "linear_1"),
    "time_embed_2": ("time_embedding", "linear_2"),
    "label_emb_0_0": ("add_embedding", "linear_1"),
    "label_emb_0_2": ("add_embedding", "linear_2"),
}
_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_MIDDLE_BLOCK = re.compile(r"middle_block[._](\d+)[._](.+)")
_OTHER_BLOCK = re.compile(r"(input|output)_blocks[._](\d+)[._]\d+[._](.+)")
_FIRST_RESNETS = re.compile(r"down_blocks\.0\.resnets\.(\d+)\.conv1")
_TEXT_MODEL = ("text_model.", "text_model_")


@dataclass(frozen=True)
class ModelLayers:
    """The linear and convolutional layers of a base model, by network, and their weights' shapes.

    `model` is the name of the checkpoint, for messages.
    """

    model: str
    shapes: Mapping[str, Mapping[str, Shape]]

    def find(self, network: str, name: str) -> str | None:
        """Return the layer of a network that a file calls `name`, or None."""
        name = layer_name(network, name)
        if network == UNET:
            name = diffusers_name(name, self._resnets_per_block)
        return self._by_name[network].get(name)

    @cached_property
    def _by_name(self) -> Mapping[str, Mapping[str, str]]:
        """The layers of each network by their names with dots, and with `_`."""
        return {
            network: {
                name: layer
                for layer in self.shapes.get(network, ())
                for name in (layer, layer.replace(".", "_"))
            }
            for network in NETWORKS
        }

    @cached_property
    def _resnets_per_block(self) -> int:
        """The `layers_per_block` of the UNet's config."""
        found = map(_FIRST_RESNETS.fullmatch, self.shapes.get(UNET, ()))
        return max((int(match[1]) + 1 for match in found if match), default=2)


def layers_of(checkpoint: Checkpoint) -> ModelLayers:
    """Return the layers of a base checkpoint that was inspected.

    Raises `CheckpointError` when a file has changed since and can't be read any more.
    """
    plans = weight_plans(checkpoint)
    shapes = {name: _layers(name, plans[name]) for name in NETWORKS if name in plans}
    return ModelLayers(checkpoint.name, MappingProxyType(shapes))


def layer_name(network: str, name: str) -> str:
    """Return the name of a layer, without what only some releases of transformers put first."""
    if network != UNET:
        for prefix in _TEXT_MODEL:
            name = name.removeprefix(prefix)
    return name


def diffusers_name(name: str, resnets_per_block: int) -> str:
    """Return diffusers' name for a layer of SDXL's UNet as it was published.

    The parts of the result are joined as those of `name` are, by dots or by `_`. A name of another
    kind is returned unchanged.
    """
    joint, plain = "." if "." in name else "_", name.replace(".", "_")
    if plain in _OUTSIDE_BLOCKS:
        return joint.join(_OUTSIDE_BLOCKS[plain])
    if middle := _MIDDLE_BLOCK.fullmatch(name):
        number, rest = int(middle[1]), middle[2]
        kind, index = ("attentions", 0) if number == 1 else ("resnets", number // 2)
        return joint.join(("mid_block", kind, str(index), _in_resnet(rest)))
    if not (other := _OTHER_BLOCK.fullmatch(name)):
        return name
    side, number, rest = other[1], int(other[2]), other[3]
    blocks = "down_blocks" if side == "input" else "up_blocks"
    block, index = divmod(number - (side == "input"), resnets_per_block + 1)
    if rest in ("op", "conv"):
        sampler = "downsamplers" if side == "input" else "upsamplers"
        return joint.join((blocks, str(block), sampler, "0", "conv"))
    inner = _in_resnet(rest)
    kind = "attentions" if inner == rest else "resnets"
    return joint.join((blocks, str(block), kind, str(index), inner))


def _in_resnet(name: str) -> str:
    """Return diffusers' name for a layer inside a resnet; a name of another kind unchanged."""
    return _RESNET.get(name.replace(".", "_"), name)


def _layers(network: str, plan: WeightPlan) -> dict[str, Shape]:
    """Return the linear and convolutional layers among the tensors of a network."""
    return {
        layer_name(network, name.removesuffix(_WEIGHT)): tensor.shape
        for name, tensor in plan.tensors.items()
        if name.endswith(_WEIGHT) and len(tensor.shape) > 1 and "embeddings." not in name
    }
