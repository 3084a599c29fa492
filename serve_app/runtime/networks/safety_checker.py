"""The image safety filter: the checker of stock Stable Diffusion pipelines, on finished images."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from serve_app.runtime.checkpoints.hub_cache import snapshot_folder
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.quiet import diffusers

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, for a folder that names no others
_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageSafetyChecker:
    """Refuses images that are close to a concept in the checker's weights.

    Equals `StableDiffusionSafetyChecker` behind a `CLIPImageProcessor`.
    """

    def __init__(self, folder: Path, device: Device) -> None:
        folder = snapshot_folder(folder)
        stock = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker
        checker = stock.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        self._checker = checker.to(device.torch_device).eval()
        self._device = device.torch_device
        self._image_size = int(self._checker.config.vision_config.image_size)
        self._mean, self._std = _normalization(folder)

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


def _normalization(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and standard deviation per channel, each (3,)."""
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    mean, std = config.get("image_mean", _MEAN), config.get("image_std", _STD)
    return np.array(mean, np.float32), np.array(std, np.float32)
