"""Prepacked layers: weights that are laid out once as a CPU's kernels read them.

oneDNN's kernels read weights in blocks of their own. torch lays plain weights out anew at each
call, and computes fp32 linear layers by another library, slower on many processors. torch.compile
prepacks too, by operators that serve here in a network that stays eager.

A kernel's result does not depend on the layout that its weights had before: where another input
size wants another layout, the operator makes it for that call. So the sizes below decide time only.
A network with prepacked layers can't be copied, and has no weights in its `state_dict`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from serve_app.runtime.networks.quantization import EightBitLinear
from serve_app.runtime.networks.quiet import diffusers

Shapes = dict[str, tuple[int, ...]]  # of the inputs of a network's layers, by the layer's name

_OPERATORS: Any = torch.ops.mkldnn  # those of torch.compile
_NOTHING_AFTER: Any = ("none", [], "")  # which operation is fused, with which numbers, and how
_ONE_LINE_A_ROW = 2  # dimensions of (rows, features)


class PrepackedLinear(nn.Linear):
    """`torch.nn.Linear` with prepacked weights."""

    packed: torch.Tensor  # opaque, in oneDNN's layout
    plain: torch.Tensor | None = None  # the same, while an extension reads them

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]  # which can be assigned
        """The weights: of the right shape, dtype and device, but opaque unless `plain` is set."""
        return _parameter(self.packed if self.plain is None else self.plain)

    def dense(self) -> torch.Tensor:
        """Return the plain weights."""
        return self.packed.to_dense()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) for (..., in_features)."""
        if input.dtype is not self.packed.dtype:  # a VAE that is upcast
            return functional.linear(input, self.packed.to_dense().to(input.dtype), self.bias)
        result: torch.Tensor = _OPERATORS._linear_pointwise(
            input, self.packed, self.bias, *_NOTHING_AFTER
        )
        return result


class PrepackedConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with prepacked weights, with which it computes channels last.

    Before it has these it computes like any other: peft makes layers of a class that it finds.
    """

    packed: torch.Tensor | None = None  # opaque, in oneDNN's layout
    plain: torch.Tensor | None = None  # the same, while an extension reads them

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]  # which can be assigned
        """See `PrepackedLinear`."""
        if self.packed is None:
            weight = self.__getattr__("weight")  # where a module keeps it
            assert isinstance(weight, nn.Parameter)
            return weight
        return _parameter(self.packed if self.plain is None else self.plain)

    def dense(self) -> torch.Tensor:
        """Return the plain weights."""
        return self.weight if self.packed is None else self.packed.to_dense()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (rows, out_channels, height, width) for (rows, in_channels, height, width)."""
        result: torch.Tensor
        if self.packed is None:
            result = super().forward(input)
        elif input.dtype is not self.packed.dtype:  # a VAE that is upcast
            result = self._conv_forward(input, self.packed.to_dense().to(input.dtype), self.bias)
        else:
            result = _OPERATORS._convolution_pointwise(
                input.contiguous(memory_format=torch.channels_last),
                self.packed,
                self.bias,
                self.padding,
                self.stride,
                self.dilation,
                self.groups,
                *_NOTHING_AFTER,
            )
        return result


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def keep_plain_weights(layer: nn.Module, *, kept: bool) -> None:
    """Let a layer have its plain weights too, or no longer; a layer with no others has them anyway.

    An extension may read them at every step, and to make them each time would take longer than the
    step.
    """
    if isinstance(layer, PrepackedLinear | PrepackedConv2d | EightBitLinear):
        if not kept:
            layer.plain = None
        elif layer.plain is None:
            layer.plain = layer.dense()


def prepacking_problem(dtype: torch.dtype) -> str:
    """Return why networks can't be prepacked on this CPU, "" when they can.

    It is tried once, because processors and builds of torch differ.
    """
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    skip_init: Any = nn.utils.skip_init  # no random numbers are drawn
    layers = nn.ModuleDict(
        {"linear": skip_init(nn.Linear, 16, 16), "convolution": skip_init(nn.Conv2d, 16, 16, 1)}
    )
    try:
        prepack(layers.to(dtype), {"linear": (1, 1, 16), "convolution": (1, 16, 1, 1)})
        layers["linear"](torch.ones(1, 1, 16, dtype=dtype))
        layers["convolution"](torch.ones(1, 16, 1, 1, dtype=dtype))
    except Exception as error:  # such a build fails in many ways
        return (str(error).strip() or type(error).__name__).split("\n")[0]
    return ""


def prepack_unet(unet: Any, latent_shape: tuple[int, int]) -> None:
    """Prepack diffusers' `UNet2DConditionModel` for latents of a height and width.

    Layers with one line per row stay plain: `row_layers` lets them compute by row.
    """

    def call(model: Any) -> None:
        config, rows = model.config, 2
        added = config.addition_time_embed_dim  # of one time id
        pooled = config.projection_class_embeddings_input_dim - added
        width = config.cross_attention_dim  # of each block's own, or of all
        width = width if isinstance(width, int) else width[0]
        model(
            torch.empty(rows, config.in_channels, *latent_shape),
            torch.empty(rows),
            encoder_hidden_states=torch.empty(rows, 1, width),
            added_cond_kwargs={
                "text_embeds": torch.empty(rows, pooled),
                "time_ids": torch.empty(rows, 1),
            },
        )

    # One that keeps its conditioning has a class of its own, and its copy would keep nothing.
    prepack(unet, _input_shapes(diffusers.UNet2DConditionModel, unet.config, call))


def prepack_vae(vae: Any, latent_shape: tuple[int, int]) -> None:
    """Prepack diffusers' `AutoencoderKL` for latents of a height and width."""

    def call(model: Any) -> None:
        pixels = model.decode(torch.empty(1, model.config.latent_channels, *latent_shape)).sample
        model.encode(pixels)

    prepack(vae, _input_shapes(type(vae), vae.config, call))


@torch.inference_mode()
def _input_shapes(network_class: Any, config: Any, call: Callable[[Any], None]) -> Shapes:
    """Return what a network's layers get in a call, by a copy that has and computes nothing.

    `call` makes its inputs on torch's default device.
    """
    shapes: Shapes = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, args: shapes.__setitem__(name, tuple(args[0].shape))

    with torch.device("meta"):
        copy = network_class.from_config(config)
        for name, module in copy.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.register_forward_pre_hook(note(name))
        call(copy)
    return shapes


def prepack(network: nn.Module, shapes: Shapes) -> None:
    """Prepack the plain layers of a network whose inputs have these shapes, one after the other.

    Linear layers with one line per row stay plain, and so do layers that are prepacked already.
    """
    for name, shape in shapes.items():
        layer: Any = network.get_submodule(name)
        if type(layer) is nn.Linear and len(shape) > _ONE_LINE_A_ROW:
            packed = _OPERATORS._reorder_linear_weight(layer.weight.data, None)
            prepacked: type[nn.Module] = PrepackedLinear
        elif type(layer) is nn.Conv2d:
            packed = _OPERATORS._reorder_convolution_weight(
                layer.weight.data.contiguous(memory_format=torch.channels_last),
                layer.padding,
                layer.stride,
                layer.dilation,
                layer.groups,
                shape,
            )
            prepacked = PrepackedConv2d
        else:
            continue
        del layer.weight
        layer.packed, layer.__class__ = packed, prepacked
    for parameter in network.parameters():  # the others, which would keep a mapped file in memory
        parameter.data = parameter.data.clone()
