"""The layers of a base model that an extension may change, and the names that files give them.

Layers are called as diffusers calls them, for example `mid_block.attentions.0.proj_in`, and a text
encoder's without the `text_model.` that transformers 4 put first. Files also use the names of the
layout in which SDXL was published, and kohya's, which have `_` in place of every dot. No torch.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from types import MappingProxyType

from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.network_folder import read_headers, weight_files

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = "unet", "text_encoder", "text_encoder_2"
NETWORKS = (UNET, TEXT_ENCODER, TEXT_ENCODER_2)

Shape = tuple[int, ...]

_WEIGHT = ".weight"
_SINGLE_FILE = {  # how a network's tensors begin in a single file
    "model.diffusion_model.": UNET,
    "conditioner.embedders.0.transformer.": TEXT_ENCODER,
    "conditioner.embedders.1.model.": TEXT_ENCODER_2,
}
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
_DOWNSAMPLER = re.compile(r"input_blocks[._](\d+)[._]0[._]op")
_FIRST_RESNETS = re.compile(r"down_blocks\.0\.resnets\.(\d+)\.conv1")
_OPEN_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_OPEN_CLIP = {
    "attn.out_proj.weight": ("self_attn.out_proj",),
    "attn.in_proj_weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.c_fc.weight": ("mlp.fc1",),
    "mlp.c_proj.weight": ("mlp.fc2",),
}
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
    shapes = _layers_in_file(checkpoint.file.header.shapes) if checkpoint.file else {}
    for network in NETWORKS:
        if network not in shapes:
            headers = read_headers(weight_files(checkpoint.folder / network))
            entries = chain.from_iterable(header.shapes.items() for header in headers)
            shapes[network] = _layers(network, entries)
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


def _layers(network: str, shapes: Iterable[tuple[str, Shape]]) -> dict[str, Shape]:
    """Return the linear and convolutional layers among the tensors of a network."""
    return {
        layer_name(network, name.removesuffix(_WEIGHT)): shape
        for name, shape in shapes
        if name.endswith(_WEIGHT) and len(shape) > 1 and "embeddings." not in name
    }


def _layers_in_file(shapes: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    """Return the layers of the networks in a single file, whose tensors have published names."""
    tensors: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        for prefix, network in _SINGLE_FILE.items():
            if name.startswith(prefix):
                tensors.setdefault(network, {})[name.removeprefix(prefix)] = shape
    layers = {network: _layers(network, part.items()) for network, part in tensors.items()}
    if unet := layers.get(UNET):
        downsamplers = [int(m[1]) for m in map(_DOWNSAMPLER.fullmatch, unet) if m]
        resnets = min(downsamplers, default=3) - 1
        layers[UNET] = {diffusers_name(name, resnets): shape for name, shape in unet.items()}
    if open_clip := tensors.get(TEXT_ENCODER_2):
        layers[TEXT_ENCODER_2] = _open_clip_layers(open_clip)
    return layers


def _open_clip_layers(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the layers of OpenCLIP's text encoder as transformers calls them."""
    layers: dict[str, Shape] = {}
    for name, shape in shapes.items():
        if name == "text_projection":
            layers[name] = shape[::-1]
        elif block := _OPEN_CLIP_BLOCK.fullmatch(name):
            parts = _OPEN_CLIP.get(block[2], ())
            for part in parts:
                layers[f"encoder.layers.{block[1]}.{part}"] = (shape[0] // len(parts), *shape[1:])
    return layers
