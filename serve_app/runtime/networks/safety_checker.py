"""The picture filter: the checker that stock Stable Diffusion pipelines carry, on finished pixels.

Knows no prompts and no HTTP. Equals `StableDiffusionSafetyChecker` behind a `CLIPImageProcessor`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.quiet import diffusers

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, where the folder does not say
_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageSafetyChecker:
    """Refuses pictures near to the concepts that the checker's weights know."""

    name = "pictures"

    def __init__(self, folder: Path, device: Device) -> None:
        stock = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker
        checker = stock.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        self._checker = checker.to(device.torch_device).eval()
        self._device = device.torch_device
        self._side = int(self._checker.config.vision_config.image_size)
        self._mean, self._std = _shift(folder)

    def refuses_prompt(self, prompt: str) -> bool:
        """Never: it judges pictures."""
        return False

    @torch.inference_mode()
    def refuses_image(self, image: npt.NDArray[np.uint8]) -> bool:
        """Whether stock would have blackened this picture, (height, width, 3)."""
        clip = self._prepared(image).to(self._device)
        unused = [np.zeros((1, 1, 3))]  # what stock would blacken
        _, refused = self._checker(clip_input=clip, images=unused)
        return bool(refused[0])

    def _prepared(self, picture: npt.NDArray[np.uint8]) -> torch.Tensor:
        """The picture as CLIP sees it: shortest side to size, middle cut out, shades shifted."""
        image, side = Image.fromarray(picture), self._side
        scale = side / min(image.size)
        width, height = (max(side, int(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        shades = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
        shifted = (shades - self._mean) / self._std
        return torch.from_numpy(shifted.transpose(2, 0, 1)[None].astype(np.float32))  # (1, 3, s, s)


def _shift(folder: Path) -> tuple[Any, Any]:
    file = folder / "preprocessor_config.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    mean, std = said.get("image_mean", _MEAN), said.get("image_std", _STD)
    return np.array(mean, np.float32), np.array(std, np.float32)
