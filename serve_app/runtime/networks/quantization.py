"""8-bit linear layers: weights and inputs of a UNet's transformer blocks in int8 or fp8.

Attention and feed-forward layers are quantized; convolutions, embeddings and the prompt's keys and
values are not. Weights are rounded when a model is loaded, with a scale for each output, and inputs
at each call, with a scale for each line (per-token dynamic quantization, as in LLM.int8(), Dettmers
et al. 2022, without its outliers). So a line is rounded alike beside any others. Sums of int8 are
exact, in whatever order a kernel adds; those of fp8 are proved in strict mode like any others.

torchao has such layers too, but its int8 overflows in fp16 before the weights' scales are applied,
and waits for a GPU dozens of times in each call.
"""

import logging

import torch
from torch import nn
from torch.nn import functional

logger = logging.getLogger("aura.runtime")

QUANTIZATIONS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_LEAST = 1e-12  # of a scale: a line of zeros stays one
_MIN_LINES = 17  # that CUDA's product of int8 takes
_SIDE = 64  # of a layer that is tried: kernels take multiples of 16


class EightBitLinear(nn.Linear):
    """`torch.nn.Linear` with weights of eight bits, which rounds its inputs to them too."""

    rounded: nn.Parameter  # (out_features, in_features), int8 or fp8
    scale: nn.Parameter  # (out_features,), fp32: what one of these stands for
    dtype: torch.dtype  # of the weights before
    plain: torch.Tensor | None = None  # the weights, while an extension reads them
    max_sums = 1 << 25  # at a time, which have four bytes each before they are scaled

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]  # which can be assigned
        """The weights: of the right shape, dtype and device, but meaningless unless `plain` is set.

        An extension asks for the former alone, at every layer.
        """
        weight = self.plain
        if weight is None:
            weight = self.scale.new_zeros((), dtype=self.dtype).expand(self.rounded.shape)
        return nn.Parameter(weight, requires_grad=False)

    def dense(self) -> torch.Tensor:
        """Return the weights that the layer computes with, in the dtype that they had."""
        return (self.rounded.float() * self.scale[:, None]).to(self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) for (..., in_features)."""
        lines = input.flatten(0, -2)
        blocks = lines.split(max(_MIN_LINES, self.max_sums // self.out_features))
        results = [self._product(block).to(input.dtype) for block in blocks]
        result: torch.Tensor = torch.cat(results).unflatten(0, input.shape[:-1])
        return result

    def _product(self, lines: torch.Tensor) -> torch.Tensor:
        """Return (lines, out_features) for (lines, in_features)."""
        rounded, scale = round_lines(lines, self.rounded.dtype)
        if self.rounded.dtype is torch.int8:
            missing = max(0, _MIN_LINES - len(lines))
            sums = torch._int_mm(functional.pad(rounded, (0, 0, 0, missing)), self.rounded.t())
            result = (sums[: len(lines)] * scale).mul_(self.scale)
        else:
            result = torch._scaled_mm(
                rounded,
                self.rounded.t(),
                scale_a=scale,
                scale_b=self.scale[None],
                out_dtype=torch.bfloat16,
                use_fast_accum=lines.is_cuda,
            )
        return result if self.bias is None else result + self.bias


def round_lines(lines: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (lines, features) in int8 or fp8, and what one of these stands for, (lines, 1)."""
    largest = _LARGEST[dtype]
    lines = lines.float()
    scale = lines.abs().amax(-1, keepdim=True).div_(largest).clamp_(min=_LEAST)
    scaled = lines / scale
    if dtype is torch.int8:
        scaled.round_()
    return scaled.clamp_(-largest, largest).to(dtype), scale


def quantize(layer: nn.Linear, mode: str) -> None:
    """Make a linear layer an `EightBitLinear`, on the device where it is."""
    weight: torch.Tensor = layer.weight.data
    rounded, scale = round_lines(weight, QUANTIZATIONS[mode])
    del layer.weight
    layer.__class__ = EightBitLinear
    assert isinstance(layer, EightBitLinear)
    layer.rounded = nn.Parameter(rounded, requires_grad=False)
    layer.scale = nn.Parameter(scale[:, 0].contiguous(), requires_grad=False)
    layer.dtype = weight.dtype


def quantize_unet(unet: nn.Module, mode: str) -> None:
    """Quantize the transformer blocks of diffusers' `UNet2DConditionModel`."""
    layers = [layer for name, layer in unet.named_modules() if is_quantizable(name, layer)]
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        quantize(layer, mode)
    logger.info("%d layers are quantized to %s", len(layers), mode)


def is_quantizable(name: str, layer: nn.Module) -> bool:
    """Return whether a layer of a UNet is one of those that are quantized."""
    is_of_prompt = name.endswith(("attn2.to_k", "attn2.to_v"))
    return type(layer) is nn.Linear and "transformer_blocks." in name and not is_of_prompt


@torch.inference_mode()
def quantization_problem(mode: str, device: torch.device) -> str:
    """Return why layers can't be quantized on a device, "" when they can.

    One is tried, with the largest sums that int8 can make: on processors without instructions for
    it they overflow.
    """
    layer = nn.Linear(_SIDE, _SIDE, bias=False, device=device)
    layer.weight.data.fill_(1.0)
    lines = torch.ones(2 * _SIDE, _SIDE, device=device)
    lines[1::2] = -1.0
    try:
        quantize(layer, mode)
        difference = (layer(lines) - _SIDE * lines).abs().max().item()
    except Exception as error:  # devices and builds of torch fail in many ways
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        return f"{mode} does not run on {device} ({reason})"
    return "" if difference < 1 else f"sums of {mode} overflow on {device}"
