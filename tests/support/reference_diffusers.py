"""The oracle: stock diffusers, one image at a time, used as its documentation says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline
from PIL import Image

from serve_app.core.diffusion.samplers import Sampler
from serve_app.core.diffusion.spec import ImageSpec, Stage
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from tests.support.reference_schedulers import stock_scheduler

Pixels = np.ndarray[Any, np.dtype[np.int16]]


@dataclass
class Stock:
    """Stock pipelines over the folders that the service loads."""

    base: Any
    base_from_image: Any
    refiner: Any
    scheduler_config: dict[str, Any]  # of the base checkpoint, without any sampler's flags
    images: dict[tuple[ImageSpec, bytes | None, bool], Pixels] = field(default_factory=dict)
    guided_steps: int = 0  # of the last image with a guidance interval, at the last stage

    @classmethod
    def over(cls, checkpoints: dict[Stage, Checkpoint]) -> "Stock":
        base = DiffusionPipeline.from_pretrained(
            checkpoints[Stage.BASE].folder, dtype=torch.float32, add_watermarker=False
        )
        refiner = DiffusionPipeline.from_pretrained(
            checkpoints[Stage.REFINER].folder, dtype=torch.float32, add_watermarker=False
        )
        from_image = StableDiffusionXLImg2ImgPipeline(**base.components, add_watermarker=False)
        for pipeline in (base, refiner, from_image):
            pipeline.set_progress_bar_config(disable=True)
        return cls(base, from_image, refiner, dict(base.scheduler.config))

    def scheduler(self, sampler: Sampler) -> Any:
        return stock_scheduler(sampler, self.scheduler_config)

    def image(
        self, spec: ImageSpec, init_image: bytes | None = None, *, refine: bool = False
    ) -> Pixels:
        """Return the image of a spec by the base alone, or by base and refiner.

        It is generated once, however many tests compare theirs with it.
        """
        key = spec, init_image, refine
        if key not in self.images:
            self.images[key] = self._generate(spec, init_image, refine)
        return self.images[key]

    def _generate(
        self,
        spec: ImageSpec,
        init_image: bytes | None,
        refine: bool,
        prompts: Callable[[], tuple[str, str | None]] | None = None,
        options: Mapping[str, Any] | None = None,
        guidance: Callable[[], float] | None = None,
    ) -> Pixels:
        generator = torch.Generator("cpu").manual_seed(spec.seed)
        prompts = prompts or (lambda: (spec.prompt, spec.negative_prompt))
        prompt, negative_prompt = prompts()
        common: dict[str, Any] = {
            **(options or {}),
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "num_inference_steps": spec.steps,
            "guidance_scale": guidance() if guidance else spec.guidance,
            "generator": generator,
        }
        first: dict[str, Any] = dict(common, output_type="latent" if refine else "pil")
        if refine:
            first["denoising_end"] = spec.handoff
        if init_image is None:
            pipeline = self.base
            first |= {"height": spec.height, "width": spec.width}
        else:
            pipeline = self.base_from_image
            first |= {"image": as_image(spec, init_image), "strength": spec.strength}
        pipeline.scheduler = self.scheduler(spec.sampler)
        image = pipeline(**first).images[0]
        if refine:
            self.refiner.scheduler = self.scheduler(spec.sampler)
            common["prompt"], common["negative_prompt"] = prompts()
            common["guidance_scale"] = guidance() if guidance else spec.guidance
            image = self.refiner(
                **common, image=image[None], denoising_start=spec.handoff, output_type="pil"
            ).images[0]
        return np.asarray(image, dtype=np.int16)

    def changing_image(
        self,
        spec: ImageSpec,
        prompts: Sequence[tuple[str, str]],
        init_image: bytes | None = None,
        *,
        refine: bool = False,
    ) -> Pixels:
        """Return an image whose prompt and negative prompt change while it is made.

        `prompts` are those of each network evaluation, by base and then by refiner.
        """
        rest = iter(prompts)
        current = next(rest)

        def change(pipeline: Any, *_: object) -> dict[str, torch.Tensor]:
            nonlocal current
            current = next(rest, current)
            is_guided = spec.guidance > 1
            positive, negative, pooled, negative_pooled = pipeline.encode_prompt(
                prompt=current[0],
                negative_prompt=current[1],
                do_classifier_free_guidance=is_guided,
            )
            return {
                "prompt_embeds": torch.cat([negative, positive]) if is_guided else positive,
                "add_text_embeds": torch.cat([negative_pooled, pooled]) if is_guided else pooled,
            }

        tensors = {
            "callback_on_step_end": change,
            "callback_on_step_end_tensor_inputs": ["prompt_embeds", "add_text_embeds"],
        }
        return self._generate(spec, init_image, refine, lambda: current, tensors)

    def image_with_interval(self, spec: ImageSpec, *, refine: bool = False) -> Pixels:
        """Return an image that is guided in its interval alone: diffusers' "dynamic CFG".

        Base and refiner must not begin without guidance and end with it, except base: rows of the
        refiner differ in their time ids, which a callback does not get.
        """
        assert spec.guidance_interval is not None
        low, high = spec.guidance_interval
        scheduler = self.scheduler(spec.sampler)
        scheduler.set_timesteps(spec.steps)
        sigma = float(scheduler.sigmas[0])
        time_ids: torch.Tensor | None = None
        self.guided_steps = 0

        def scale() -> float:
            return spec.guidance if low < sigma <= high else 1.0

        def change(
            pipeline: Any, _step: int, _timestep: object, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            nonlocal sigma, time_ids
            self.guided_steps += pipeline.do_classifier_free_guidance
            both = tensors["add_time_ids"]
            time_ids = torch.cat([both, both]) if len(both) == 1 and time_ids is None else time_ids
            time_ids = both if len(both) == 2 else time_ids
            assert time_ids is not None
            sigma = float(pipeline.scheduler.sigmas[pipeline.scheduler.step_index])
            pipeline._guidance_scale = scale()
            positive, negative, pooled, negative_pooled = pipeline.encode_prompt(
                prompt=spec.prompt,
                negative_prompt=spec.negative_prompt,
                do_classifier_free_guidance=True,
            )
            if not pipeline.do_classifier_free_guidance:
                return {
                    "prompt_embeds": positive,
                    "add_text_embeds": pooled,
                    "add_time_ids": time_ids[1:],
                }
            return {
                "prompt_embeds": torch.cat([negative, positive]),
                "add_text_embeds": torch.cat([negative_pooled, pooled]),
                "add_time_ids": time_ids,
            }

        options = {
            "callback_on_step_end": change,
            "callback_on_step_end_tensor_inputs": [
                "prompt_embeds",
                "add_text_embeds",
                "add_time_ids",
            ],
        }
        return self._generate(spec, None, refine, options=options, guidance=scale)

    def refined_alone(self, spec: ImageSpec, init_image: bytes) -> Pixels:
        """Return an init image after the refiner alone."""
        self.refiner.scheduler = self.scheduler(spec.sampler)
        image = self.refiner(
            prompt=spec.prompt,
            negative_prompt=spec.negative_prompt,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance,
            generator=torch.Generator("cpu").manual_seed(spec.seed),
            image=as_image(spec, init_image),
            strength=spec.strength,
        ).images[0]
        return np.asarray(image, dtype=np.int16)


def as_image(spec: ImageSpec, rgb: bytes) -> Image.Image:
    return Image.frombytes("RGB", (spec.width, spec.height), rgb)


def base_pipeline(folder: Path) -> Any:
    """Return the stock pipeline of a base folder, with the folder's own scheduler."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline_image(
    pipeline: Any, spec: ImageSpec, init_image: bytes | None = None, scheduler: Any = None
) -> Pixels:
    """Return the image of a stock pipeline by its own scheduler, or by a given one."""
    components = dict(pipeline.components, scheduler=scheduler or pipeline.scheduler)
    size: dict[str, Any] = {"height": spec.height, "width": spec.width}
    stock: Any = type(pipeline)
    if init_image is not None:
        stock = StableDiffusionXLImg2ImgPipeline
        size = {"image": as_image(spec, init_image), "strength": spec.strength}
    pipeline = stock(**components, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance,
        generator=torch.Generator("cpu").manual_seed(spec.seed),
        **size,
    ).images[0]
    return np.asarray(image, dtype=np.int16)
