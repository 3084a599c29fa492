"""The image safety filter: the checker of stock Stable Diffusion pipelines, on finished images."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.checkpoint import check_safety_checker
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.loading import build_clip
from serve_app.runtime.networks.quiet import diffusers


class ImageSafetyChecker:
    """Refuses images that are close to a concept in the checker's weights.

    Equals `StableDiffusionSafetyChecker` behind a `CLIPImageProcessor`.
    """

    def __init__(self, folder: Path, device: Device) -> None:
        stock = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker
        files = check_safety_checker(folder)
        try:
            checker = build_clip(stock, files.config.clip_options, files.plan, torch.float32)
        except CheckpointError as error:
            raise error.about(str(folder)) from error.__cause__
        self._checker = checker.to(device.torch_device)
        self._device = device.torch_device
        self._image_size = int(self._checker.config.vision_config.image_size)
        self._mean = np.array(files.preprocessor.image_mean, np.float32)
        self._std = np.array(files.preprocessor.image_std, np.float32)

    @torch.inference_mode()
    def refuses_image(self, image: npt.NDArray[np.uint8]) -> bool:
        """Return whether the stock checker would black out this image, (height, width, 3)."""
        clip_input = self.preprocess(image).to(self._device)
        unused = [np.zeros((1, 1, 3))]  # the images that the checker blacks out
        _, has_concept = self._checker(clip_input=clip_input, images=unused)
        return bool(has_concept[0])

    def preprocess(self, image: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Resize the shortest side, crop the center, normalize: (1, 3, size, size), fp32."""
        pil, size = Image.fromarray(image), self._image_size
        scale = size / min(pil.size)
        width, height = (max(size, int(length * scale)) for length in pil.size)
        pil = pil.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        cropped = pil.crop((left, top, left + size, top + size))
        normalized = (np.asarray(cropped, np.float32) / 255 - self._mean) / self._std
        return torch.from_numpy(normalized.transpose(2, 0, 1)[None].astype(np.float32))
