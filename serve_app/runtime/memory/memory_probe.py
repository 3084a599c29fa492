"""Room on the device: modules put there, tried at their largest, and what is given up for it.

Knows no samples and no schedule. Order and arithmetic of giving up are `core.fitting`'s.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.diffusion.spec import LATENT_CHANNELS, ImageSpec
from serve_app.core.errors import DeviceFull
from serve_app.core.scheduling.memory_plan import (
    MemoryPlan,
    MemorySaving,
    first_plan_that_fits,
    shortfall,
)
from serve_app.runtime.memory.device import Device, is_out_of_memory
from serve_app.runtime.memory.pinned_copies import PinnedCopies
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.loading import Modules
from serve_app.runtime.stage_model import Parts

logger = logging.getLogger("aura.memory")

SAVINGS_BY_DEVICE: dict[str, tuple[MemorySaving, ...]] = {
    # Sliced attention would cost memory here: CUDA's own attention never writes the scores down.
    "cuda": (MemorySaving.VAE_TILES, MemorySaving.TEXT_ON_CPU, MemorySaving.UNET_ON_CPU),
    # The CPU has the same memory, so nothing is gained by staying there.
    "mps": (MemorySaving.VAE_TILES, MemorySaving.SLICED_ATTENTION),
}
_TILE = 512  # pixels: at SDXL's own 1024 a usual picture would be one tile
_SPARE = 0.05  # of the memory: fragments, and others on the card
# Numbers that a worn LoRA adds to a UNet call at its peak, for each row and pixel of the picture:
# counted with SDXL's own UNet, as the 79 of a plain call are; several add no more than one.
_LORA_WORK = 20


class Placement:
    """The modules of a stage on their device, with the rungs that were taken. They only add up.

    Parked, they lie in the host's memory alone, and come back as they were.
    """

    def __init__(self, modules: Modules, device: Device) -> None:
        self._modules = modules
        self._device = device
        self._copies: PinnedCopies | None = None
        networks = (modules.unet, modules.vae, *modules.text_encoders.networks)
        # LoRAs come and go later: a copy of one would keep it for ever.
        self._own = {id(one) for network in networks for one in network.parameters()}
        self.applied: tuple[MemorySaving, ...] = ()

    def apply(self, savings: tuple[MemorySaving, ...]) -> None:
        """The rungs are taken, and every module is where it should be.

        Raises what the device raises when there is no room for the modules themselves.
        """
        modules = self._modules
        for rung in savings[len(self.applied) :]:
            _APPLY[rung](modules, self._device.torch_device)
            self.applied = (*self.applied, rung)
        modules.vae.to(self._device.torch_device)
        modules.text_encoders.keep_on_device(on_device=MemorySaving.TEXT_ON_CPU not in self.applied)
        if MemorySaving.UNET_ON_CPU not in self.applied:
            modules.unet.to(self._device.torch_device)

    def offload(self) -> None:
        """Nothing of the modules is on the device. On a CPU nothing moves.

        The first time it makes the copies where the device fetches them from.
        """
        networks = self._resident_networks()
        if self._copies is None and self._device.has_own_memory:
            self._copies = PinnedCopies(self._own_tensors(networks), self._device)
        if self._copies is not None:
            self._copies.offload()
        for network in networks:
            network.to("cpu")  # what has no copy, or where there are none

    def restore(self) -> None:
        """Every module is where it was before `park`, at the cost of one copy.

        Raises what the device raises when there is no room; then all is parked as before.
        """
        try:
            if self._copies is not None:
                self._copies.restore()
            for network in self._resident_networks():
                network.to(self._device.torch_device)
        except Exception:
            self.offload()
            raise

    def _own_tensors(self, networks: Iterable[Any]) -> list[torch.Tensor]:
        """What is in the networks but LoRAs, which are left to `Module.to`."""
        tensors: list[torch.Tensor] = []
        for network in networks:
            tensors += (one for one in network.parameters() if id(one) in self._own)
            tensors += network.buffers()
        return tensors

    def _resident_networks(self) -> tuple[Any, ...]:
        """The networks that are on the device while nothing works: by a rung, some only visit."""
        modules = self._modules
        text = () if MemorySaving.TEXT_ON_CPU in self.applied else modules.text_encoders.networks
        unet = () if MemorySaving.UNET_ON_CPU in self.applied else (modules.unet,)
        return (modules.vae, *text, *unet)

    @property
    def bytes_on_device(self) -> int:
        """Bytes of the device that the modules take while nothing works."""
        modules = self._modules
        networks = (modules.unet, modules.vae, *modules.text_encoders.networks)
        tensors = (tensor for network in networks for tensor in network.parameters())
        kind = self._device.torch_device.type
        return sum(one.nbytes for one in tensors if one.device.type == kind)


class MemoryProbe:
    """Whether a set-up holds, tried: the largest picture that may be asked for, all its works.

    So many models as are `to_come` must find room beside it, taken to be as large: else the next
    one would leave this one too little for its batch. So must `loras` bytes of adapters.
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
        lora_bytes: int = 0,
    ) -> None:
        self._parts = parts
        self._placement = placement
        self._device = device
        self._size = SizeRules(native_size).largest
        self._strict = strict
        self._reserve_for = reserve_for
        self._lora_bytes = lora_bytes

    def __call__(self, plan: MemoryPlan) -> bool:
        """Whether it held and left a little to spare. Set-ups must come in climbing order."""
        rows = lanes_for(plan.images, strict=self._strict) or 2 * plan.images
        self._device.empty_cache()
        try:
            self._placement.apply(plan.savings)
            self._device.empty_cache()  # what has just left the device counts no more
            self._dry_run(plan, rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.info("%s: no room", plan)
            return False
        use = self._device.memory_usage()
        if use is None:
            return True
        logger.info("%s: %.1f of %.1f GB", plan, use.peak / 1e9, use.limit / 1e9)
        kept = (
            self._reserve_for * (self._placement.bytes_on_device + self._lora_bytes)
            + self._lora_bytes
        )
        if self._lora_bytes:
            width, height = self._size
            kept += _LORA_WORK * rows * width * height * self._device.dtype.itemsize
        return use.peak + kept <= (1 - _SPARE) * use.limit

    @torch.inference_mode()
    def _dry_run(self, plan: MemoryPlan, rows: int) -> None:
        """A prompt that nobody has encoded yet, a step, a picture decoded and encoded."""
        parts, (width, height) = self._parts, self._size
        spec = ImageSpec(
            prompt=str(plan), seed=0, width=width, height=height, steps=1, guidance=2.0
        )
        guide = parts.conditioner.condition(spec)
        x = torch.zeros(1, LATENT_CHANNELS, *spec.latent_shape, device=self._device.torch_device)
        (denoised,) = parts.denoiser(x, [DenoiserInput(1.0, 900.0, guide)], rows)
        parts.image_codec.encode(parts.image_codec.decode(denoised), x[0])


def find_memory_plan(
    images: int,
    savings: Sequence[MemorySaving],
    probe: MemoryProbe,
    previous_plan: MemoryPlan | None = None,
) -> MemoryPlan:
    """The set-up that holds, with so many images at most; what it cost is in the log. What was
    fitted `before` gets no more than then.

    Raises `DeviceFull` when not even one image has room.
    """
    found = first_plan_that_fits(images, savings, probe, previous_plan)
    if found is None:
        raise DeviceFull(
            "the device has no room for one image, though all was given up that can be. Free its "
            "memory (nvidia-smi shows who has it), or set MODEL_PRECISION=fp16, "
            "MAX_LOADED_MODELS=1 or MODEL_DEVICE=cpu"
        )
    if said := shortfall(images, found):
        logger.warning(said)
    return found


def lanes_for(images: int, *, strict: bool) -> int:
    """The fixed number of UNet rows for so many guided images: 0 in fast mode.

    A power of two: kernels split such a batch evenly over threads, so that no slot is special.
    """
    return 1 << (2 * images - 1).bit_length() if strict else 0


def _tile_vae(modules: Modules, device: torch.device) -> None:
    vae = modules.vae
    vae.enable_tiling()
    side = min(_TILE, vae.tile_sample_min_size)
    vae.tile_latent_min_size = vae.tile_latent_min_size * side // vae.tile_sample_min_size
    vae.tile_sample_min_size = side


def _slice_attention(modules: Modules, device: torch.device) -> None:
    modules.unet.set_attention_slice("max")


def _keep_text_on_cpu(modules: Modules, device: torch.device) -> None:
    modules.text_encoders.keep_on_device(on_device=False)


def _keep_unet_on_cpu(modules: Modules, device: torch.device) -> None:
    modules.unet.to("cpu").enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=device.type == "cuda",  # the next layer comes while this one works
    )


_APPLY: dict[MemorySaving, Callable[[Modules, torch.device], Any]] = {
    MemorySaving.VAE_TILES: _tile_vae,
    MemorySaving.SLICED_ATTENTION: _slice_attention,
    MemorySaving.TEXT_ON_CPU: _keep_text_on_cpu,
    MemorySaving.UNET_ON_CPU: _keep_unet_on_cpu,
}
