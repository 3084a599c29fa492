"""One denoising step by each way to run the UNet on a CPU, each in a process of its own.

A way that runs out of memory ends its own process alone. Times are of the service's `UNetDenoiser`:
input scaling, the UNet and the denoised latents.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from serve_app.bench.made_up_step import made_up_step
from serve_app.core.diffusion.prompt import ENCODED_TOKENS
from serve_app.core.diffusion.spec import PIXELS_PER_LATENT, Stage
from serve_app.core.errors import OperatorError
from serve_app.process import allocator
from serve_app.runtime.checkpoints.checkpoint import inspect
from serve_app.runtime.memory.device import DTYPES
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.kept_conditioning import keep_conditioning
from serve_app.runtime.networks.loading import load_unet
from serve_app.runtime.networks.prepacked import prepack_unet
from serve_app.runtime.networks.quantization import quantize_unet


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run the UNet."""

    label: str
    precision: str  # a key of DTYPES
    channels_last: bool = False
    served: bool = False  # prepacked, with its conditioning kept: as the service runs it
    quantization: str = ""
    compiled: str = ""  # "regions", "full", or "" for eager
    openvino: bool = False
    copies: float = 1.0  # of the weights that it has in memory at its peak


VARIANTS = (
    Variant("eager fp32", "fp32"),
    Variant("eager fp32, channels-last", "fp32", channels_last=True, copies=1.1),
    Variant("served fp32", "fp32", served=True, copies=1.1),
    Variant("eager bf16", "bf16"),
    Variant("eager bf16, channels-last", "bf16", channels_last=True, copies=1.1),
    Variant("served bf16", "bf16", served=True, copies=1.1),
    Variant("served bf16, int8", "bf16", served=True, quantization="int8", copies=1.1),
    Variant("compiled bf16, regions", "bf16", compiled="regions"),
    Variant("compiled bf16, full", "bf16", compiled="full"),
    Variant("OpenVINO bf16", "bf16", openvino=True, copies=2.2),
)


def named_variants(words: Sequence[str]) -> tuple[Variant, ...]:
    """Return the variants whose labels contain one of the words, or all of them without words.

    Raises `OperatorError` if there are none.
    """
    lower = [word.lower() for word in words] or [""]
    found = tuple(v for v in VARIANTS if any(word in v.label.lower() for word in lower))
    if not found:
        labels = ", ".join(variant.label for variant in VARIANTS)
        raise OperatorError(
            "names no way to run the UNet", subject="--only", remedy=f"Ways: {labels}"
        )
    return found


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What one process has measured."""

    ready_seconds: float  # reading weights, and a first step at each number of rows
    seconds: Mapping[int, Sequence[float]]  # by rows
    denoised: npt.NDArray[np.float32]  # of one row, to compare the ways with each other


@torch.inference_mode()
def measure(
    variant: Variant, folder: Path, side: int, rows: Sequence[int], runs: int, threads: int
) -> StepTimes:
    """Return the times of a step of images of `side` pixels, at each number of rows."""
    allocator.keep_large_blocks()  # as in the service
    torch.set_num_threads(threads)
    start, checkpoint = time.perf_counter(), inspect(folder, Stage.BASE)
    dtype = DTYPES[variant.precision]
    unet: Any = load_unet(checkpoint, dtype)
    if variant.channels_last:
        unet.to(memory_format=torch.channels_last)
    if variant.quantization:
        quantize_unet(unet, variant.quantization)
    if variant.served:
        prepack_unet(unet, (side // PIXELS_PER_LATENT, side // PIXELS_PER_LATENT))
        keep_conditioning(unet, max(rows) * ENCODED_TOKENS)
    if variant.compiled == "regions":
        unet.compile_repeated_blocks(dynamic=False)
    elif variant.compiled == "full":
        unet.compile(dynamic=False)
    if variant.openvino:
        unet = OpenVinoUNet(unet, threads)
    denoiser = UNetDenoiser(unet, checkpoint.noise_config.preconditioning, dtype)
    batches = {count: made_up_step(checkpoint, side, count, dtype) for count in rows}
    outputs = {count: denoiser(x, inputs, count) for count, (x, inputs) in batches.items()}
    ready = time.perf_counter() - start
    seconds: dict[int, list[float]] = {count: [] for count in rows}
    for count, (x, inputs) in batches.items():
        denoiser(x, inputs, count)  # the first step of a batch is not like those after it
        for _ in range(runs):
            start = time.perf_counter()
            denoiser(x, inputs, count)
            seconds[count].append(time.perf_counter() - start)
    return StepTimes(ready, seconds, outputs[rows[0]][0].numpy())


class OpenVinoUNet:
    """A UNet that OpenVINO runs on the CPU, behind the call of diffusers' UNet2DConditionModel.

    OpenVINO chooses the precision that it finds fastest: bf16 where the processor has it. A number
    of rows is a model of its own, as static shapes are what it computes fastest with.
    """

    def __init__(self, unet: nn.Module, threads: int) -> None:
        self._unet, self._threads = unet, threads
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(
        self,
        rows: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: Mapping[str, torch.Tensor],
        return_dict: bool,
    ) -> tuple[torch.Tensor]:
        """Return the predicted noise."""
        inputs = [
            tensor.float()
            for tensor in (
                rows,
                timesteps,
                encoder_hidden_states,
                added_cond_kwargs["text_embeds"],
                added_cond_kwargs["time_ids"],
            )
        ]
        shape = tuple(rows.shape)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(inputs)
        return (torch.from_numpy(self._compiled[shape]([t.numpy() for t in inputs])[0]),)

    def _compile(self, inputs: list[torch.Tensor]) -> Any:
        import openvino

        example = tuple(tensor.to(torch.float32) for tensor in inputs)
        model = openvino.convert_model(
            _Positional(self._unet),
            example_input=example,
            input=[tuple(tensor.shape) for tensor in inputs],
        )
        return openvino.Core().compile_model(
            model, "CPU", {"INFERENCE_NUM_THREADS": self._threads, "PERFORMANCE_HINT": "LATENCY"}
        )


class _Positional(nn.Module):
    """A UNet whose inputs are positional, as OpenVINO traces them, in fp32."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self._unet: Any = unet

    def forward(
        self,
        rows: torch.Tensor,
        timesteps: torch.Tensor,
        embeds: torch.Tensor,
        pooled: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Return the predicted noise."""
        dtype = self._unet.conv_in.weight.dtype
        predicted: torch.Tensor = self._unet(
            rows.to(dtype),
            timesteps,
            encoder_hidden_states=embeds.to(dtype),
            added_cond_kwargs={
                "text_embeds": pooled.to(dtype),
                "time_ids": time_ids.to(dtype),
            },
            return_dict=False,
        )[0]
        return predicted.float()
