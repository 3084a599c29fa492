"""Fitting a stage's model into the device's memory, by trying memory plans.

`core.scheduling.memory_plan` says which plans there are, and in which order they are tried.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.diffusion.spec import LATENT_CHANNELS, ImageSpec
from serve_app.core.errors import DeviceFull, NumericFault
from serve_app.core.scheduling.memory_plan import (
    MemoryPlan,
    MemorySaving,
    first_plan_that_fits,
    shortfall,
)
from serve_app.core.scheduling.work import BatchSize
from serve_app.runtime.lane_counts import lane_counts_for
from serve_app.runtime.memory.device import Device, is_out_of_memory
from serve_app.runtime.memory.pinned_copies import PinnedCopies
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.kept_conditioning import (
    forget_conditioning,
    kept_bytes,
    stop_keeping,
)
from serve_app.runtime.networks.loading import Modules
from serve_app.runtime.networks.step_cache import StepFeatures
from serve_app.runtime.parts import Parts

logger = logging.getLogger("aura.memory")

SAVINGS_BY_DEVICE: dict[str, tuple[MemorySaving, ...]] = {
    # Sliced attention would cost memory: CUDA's fused attention never materializes the scores.
    "cuda": (MemorySaving.VAE_TILES, MemorySaving.TEXT_ON_CPU, MemorySaving.UNET_ON_CPU),
    # CPU and GPU share one memory, so offloading gains nothing.
    "mps": (MemorySaving.VAE_TILES, MemorySaving.SLICED_ATTENTION),
}
_TILE_SIZE = 512  # pixels; at SDXL's default of 1024 an image of the usual size is one tile
_HEADROOM = 0.05  # share of the memory, for fragmentation and for other processes on the GPU


class Placement:
    """The modules of a stage on their device, with the memory savings applied so far.

    Savings only add up. Offloaded modules are in host memory alone, and are restored unchanged.
    """

    def __init__(self, modules: Modules, device: Device) -> None:
        self._modules = modules
        self._device = device
        self._copies: PinnedCopies | None = None
        networks = (modules.unet, modules.vae, *modules.text_encoders.networks)
        # Extensions are attached and detached later: a copy would keep them in memory for ever.
        self._own = {id(parameter) for network in networks for parameter in network.parameters()}
        self.applied: tuple[MemorySaving, ...] = ()

    def apply(self, savings: tuple[MemorySaving, ...]) -> None:
        """Apply the savings that are new, and place every module accordingly.

        `savings` begin with those applied before. Raises the device's own error when the modules
        themselves do not fit.
        """
        modules = self._modules
        for saving in savings[len(self.applied) :]:
            _APPLY[saving](modules, self._device.torch_device)
            self.applied = (*self.applied, saving)
        modules.vae.to(self._device.torch_device)
        modules.text_encoders.keep_on_device(on_device=MemorySaving.TEXT_ON_CPU not in self.applied)
        if MemorySaving.UNET_ON_CPU not in self.applied:
            modules.unet.to(self._device.torch_device)

    def offload(self) -> None:
        """Move all modules off the device. On a CPU nothing moves.

        The first call makes the pinned copies from which `restore` fetches.
        """
        forget_conditioning(self._modules.unet)
        networks = self._resident_networks()
        if self._copies is None and self._device.has_own_memory:
            self._copies = PinnedCopies(self._own_tensors(networks), self._device)
        if self._copies is not None:
            self._copies.offload()
        for network in (*networks, *self._modules.beside):
            network.to("cpu")  # tensors without a copy

    def restore(self) -> None:
        """Bring every module back to where it was before `offload`.

        Raises the device's own error when memory runs out; everything is offloaded then.
        """
        try:
            if self._copies is not None:
                self._copies.restore()
            for network in (*self._resident_networks(), *self._modules.beside):
                network.to(self._device.torch_device)
        except Exception:
            self.offload()
            raise

    def _own_tensors(self, networks: Iterable[Any]) -> list[torch.Tensor]:
        """Return parameters and buffers except those of extensions, which `Module.to` moves."""
        tensors: list[torch.Tensor] = []
        for network in networks:
            tensors += (tensor for tensor in network.parameters() if id(tensor) in self._own)
            tensors += network.buffers()
        return tensors

    def _resident_networks(self) -> tuple[Any, ...]:
        """Return the networks that are on the device even while nothing runs."""
        modules = self._modules
        text = () if MemorySaving.TEXT_ON_CPU in self.applied else modules.text_encoders.networks
        unet = () if MemorySaving.UNET_ON_CPU in self.applied else (modules.unet,)
        return (modules.vae, *text, *unet)

    @property
    def kept_bytes(self) -> int:
        """Bytes that the last batch has left on the device: see `kept_conditioning`."""
        return kept_bytes(self._modules.unet)

    @property
    def bytes_on_device(self) -> int:
        """Bytes of parameters on the device while nothing runs."""
        modules = self._modules
        networks = (
            modules.unet,
            modules.vae,
            *modules.text_encoders.networks,
            *modules.beside,
        )
        tensors = (tensor for network in networks for tensor in network.parameters())
        device_type = self._device.torch_device.type
        return sum(tensor.nbytes for tensor in tensors if tensor.device.type == device_type)


class MemoryProbe:
    """Try a memory plan by running every kind of work on the largest legal image.

    The plan must leave memory for `reserve_for` more models of the same size, or else the next
    model would leave this one too little for its batch; and for `extension_bytes` of extensions on
    each of these models.
    """

    def __init__(
        self,
        parts: Parts,
        placement: Placement,
        device: Device,
        *,
        native_size: int,
        strict: bool,
        reserve_for: int,
        extension_bytes: int = 0,
        extension_work: float = 0.0,  # see `ExtensionKind.work_per_pixel`
    ) -> None:
        self._parts = parts
        self._placement = placement
        self._device = device
        self._size = SizeRules(native_size).largest
        self._strict = strict
        self._reserve_for = reserve_for
        self._extension_bytes = extension_bytes
        self._extension_work = extension_work

    def __call__(self, plan: MemoryPlan) -> bool:
        """Return whether a plan fits. Each plan must have the savings of the one before."""
        rows = BatchSize(plan.images, lane_counts_for(plan.images, strict=self._strict)).rows
        self._device.empty_cache()
        try:
            self._placement.apply(plan.savings)
            self._device.empty_cache()  # modules that just left the device do not count
            self._dry_run(plan, rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.info("%s: out of memory", plan)
            return False
        usage = self._device.memory_usage()
        if usage is None:
            return True
        logger.info("%s: %.1f of %.1f GB", plan, usage.peak / 1e9, usage.limit / 1e9)
        return usage.peak + self._reserved_bytes(rows) <= (1 - _HEADROOM) * usage.limit

    def _reserved_bytes(self, rows: int) -> int:
        """Return the bytes that the dry run did not use, but that will be needed beside it."""
        placement = self._placement
        per_model = placement.bytes_on_device + placement.kept_bytes + self._extension_bytes
        reserved = self._reserve_for * per_model + self._extension_bytes
        if self._extension_work:
            width, height = self._size
            values = round(self._extension_work * rows * width * height)
            reserved += values * self._device.dtype.itemsize
        return reserved

    @torch.inference_mode()
    def _dry_run(self, plan: MemoryPlan, rows: int) -> None:
        """Encode a new prompt, take one step, decode an image and encode it.

        The step leaves the deep features of all images, as with a step cache.
        """
        parts, (width, height) = self._parts, self._size
        spec = ImageSpec(
            prompt=str(plan), seed=0, width=width, height=height, steps=1, guidance=2.0
        )
        conditioning = parts.conditioner.condition(spec).at(0)
        inputs = [
            DenoiserInput(1.0, 900.0, conditioning, StepFeatures()) for _ in range(plan.images)
        ]
        shape = (plan.images, LATENT_CHANNELS, *spec.latent_shape)
        x = torch.zeros(shape, device=self._device.torch_device)
        denoised = parts.denoiser(x, inputs, rows)[0]
        image = np.zeros((height, width, 3), np.uint8)
        with suppress(NumericFault):  # `SelfTest` checks the numbers, and says what is wrong
            image = parts.image_codec.decode(denoised).image
        with suppress(NumericFault):
            parts.image_codec.encode(image, x[0])


def find_memory_plan(
    images: int,
    savings: Sequence[MemorySaving],
    probe: MemoryProbe,
    previous_plan: MemoryPlan | None = None,
) -> MemoryPlan:
    """Return the first plan that fits, for at most `images` at a time; log what it gives up.

    The search starts at `previous_plan`, if there is one, so a model that is loaded again gets no
    more than before. Raises `DeviceFull` when not even one image fits.
    """
    plan = first_plan_that_fits(images, savings, probe, previous_plan)
    if plan is None:
        raise DeviceFull(
            "the device has too little memory for one image, even with every memory saving",
            remedy="Free its memory (nvidia-smi shows who uses it), or set MODEL_PRECISION=fp16, "
            "MAX_LOADED_MODELS=1 or MODEL_DEVICE=cpu",
        )
    if warning := shortfall(images, plan):
        logger.warning(warning)
    return plan


def _tile_vae(modules: Modules, device: torch.device) -> None:
    vae = modules.vae
    vae.enable_tiling()
    size = min(_TILE_SIZE, vae.tile_sample_min_size)
    vae.tile_latent_min_size = vae.tile_latent_min_size * size // vae.tile_sample_min_size
    vae.tile_sample_min_size = size


def _slice_attention(modules: Modules, device: torch.device) -> None:
    modules.unet.set_attention_slice("max")


def _keep_text_on_cpu(modules: Modules, device: torch.device) -> None:
    modules.text_encoders.keep_on_device(on_device=False)


def _keep_unet_on_cpu(modules: Modules, device: torch.device) -> None:
    stop_keeping(modules.unet)  # layers are fetched in the order of the first step
    modules.unet.to("cpu").enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=device.type == "cuda",  # copy the next layer while this one computes
    )


_APPLY: dict[MemorySaving, Callable[[Modules, torch.device], Any]] = {
    MemorySaving.VAE_TILES: _tile_vae,
    MemorySaving.SLICED_ATTENTION: _slice_attention,
    MemorySaving.TEXT_ON_CPU: _keep_text_on_cpu,
    MemorySaving.UNET_ON_CPU: _keep_unet_on_cpu,
}
