"""`StockPipeline`: diffusers' own pipeline, as all systems but ours use it.

It needs only torch and diffusers, so that it also runs in the environment of another server.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from serve_app.bench.serve.workload import GUIDANCE, ImageRequest


class StockPipeline:
    """The stock SDXL pipeline on the CPU. One call at a time: it is not made for threads."""

    def __init__(self, checkpoint: str, threads: int, loras: Mapping[str, str]) -> None:
        torch.set_num_threads(threads)
        pipeline: Any = StableDiffusionXLPipeline
        self._pipeline = pipeline.from_pretrained(
            checkpoint, dtype=torch.float32, use_safetensors=True, add_watermarker=False
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._has_loras = bool(loras)
        for name, file in loras.items():
            self._pipeline.load_lora_weights(
                str(Path(file).parent), weight_name=Path(file).name, adapter_name=name
            )

    def images(self, requests: Sequence[ImageRequest]) -> list[Any]:
        """Return the images (PIL) of requests of one kind, made in one call."""
        first = requests[0]
        if self._has_loras:
            if first.lora:
                self._pipeline.enable_lora()
                self._pipeline.set_adapters([first.lora])
            else:
                self._pipeline.disable_lora()
        output = self._pipeline(
            [request.prompt for request in requests],
            num_inference_steps=first.steps,
            guidance_scale=GUIDANCE,
            width=first.width,
            height=first.height,
            generator=[torch.Generator("cpu").manual_seed(r.seed) for r in requests],
        )
        return list(output.images)


def by_kind(requests: Sequence[ImageRequest], at_most: int) -> list[list[int]]:
    """Return the numbers of the requests that can share a call, in calls of at most so many.

    A call has one step count, one size and one set of LoRAs.
    """
    kinds: dict[object, list[int]] = {}
    for number, request in enumerate(requests):
        kinds.setdefault(request.kind, []).append(number)
    return [
        numbers[start : start + at_most]
        for numbers in kinds.values()
        for start in range(0, len(numbers), at_most)
    ]
