"""From checkpoints and options to models that are ready to step: the runtime's front door."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.prompt import ENCODED_TOKENS
from serve_app.core.diffusion.sizes import SizeRules
from serve_app.core.diffusion.spec import PIXELS_PER_LATENT
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.work import BatchSize
from serve_app.core.service.moderation import ImageFilter
from serve_app.core.service.warm_ups import OnWarmUp
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.file_digest import checkpoint_digest
from serve_app.runtime.extensions.extension_set import ExtensionFiles, ExtensionSet
from serve_app.runtime.fit_lanes import fit_lanes
from serve_app.runtime.lane_counts import LaneCounts, always_ready, lane_counts_for
from serve_app.runtime.memory.device import Device
from serve_app.runtime.memory.memory_probe import (
    SAVINGS_BY_DEVICE,
    MemoryProbe,
    Placement,
    find_memory_plan,
)
from serve_app.runtime.memory.model_cache import Loader
from serve_app.runtime.networks.compiled_unet import CompiledUNet
from serve_app.runtime.networks.compiler import compiler
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import UNetDenoiser
from serve_app.runtime.networks.kept_conditioning import (
    keep_conditioning,
    limit_kept_conditioning,
)
from serve_app.runtime.networks.loading import Modules, load
from serve_app.runtime.networks.prepacked import prepack_unet, prepack_vae
from serve_app.runtime.networks.quantization import quantize_unet
from serve_app.runtime.networks.row_layers import compute_by_row
from serve_app.runtime.networks.vae import SdxlVae
from serve_app.runtime.parts import Parts
from serve_app.runtime.previews import fit_latent_to_rgb
from serve_app.runtime.proof_file import ProofFile
from serve_app.runtime.stage_model import StageModel
from serve_app.runtime.warm_up import warm_up

logger = logging.getLogger("aura.runtime")


def model_loaders(
    checkpoints: Iterable[Checkpoint],
    device: Device,
    *,
    images: int,
    strict: bool,
    safety: ImageFilter | None = None,
    extensions: Mapping[ModelKey, ExtensionFiles] | None = None,
    proofs: ProofFile | None = None,
    load_modules: Callable[[Checkpoint, Device], Modules] = load,
) -> dict[ModelKey, Loader]:
    """Return what loads each of these checkpoints, for a `ModelCache`; see `build_stage_model`."""
    loaders: dict[ModelKey, Loader] = {}
    for checkpoint in checkpoints:
        key = ModelKey(checkpoint.stage, checkpoint.name)
        loaders[key] = partial(
            build_stage_model,
            checkpoint,
            device,
            images=images,
            strict=strict,
            safety=safety,
            extensions=(extensions or {}).get(key),
            proofs=proofs,
            load_modules=load_modules,
        )
    return loaders


def build_stage_model(
    checkpoint: Checkpoint,
    device: Device,
    reserve_for: int = 0,
    previous_plan: MemoryPlan | None = None,
    *,
    images: int,
    strict: bool,
    safety: ImageFilter | None = None,
    extensions: ExtensionFiles | None = None,
    proofs: ProofFile | None = None,
    load_modules: Callable[[Checkpoint, Device], Modules] = load,
) -> StageModel:
    """Load a stage's networks, fit them to the device's memory if it is limited, and check them.

    At most `images` guided images step together. Memory is left for `reserve_for` more models of
    this size, and for the largest extensions that can be attached together. A model that was in
    memory earlier begins with its `previous_plan`. The weights are quantized and prepacked as the
    device says. In strict mode batch invariance is checked, unless it is among the `proofs` that
    are remembered.
    Raises `OperatorError` when that fails, and `DeviceFull` when not even one image fits.
    """
    modules = load_modules(checkpoint, device)
    if strict:
        compute_by_row(modules.unet, device)
    opened = extensions.open(modules) if extensions else ExtensionSet()  # finds plain layers
    if device.quantization != "off":
        quantize_unet(modules.unet, device.quantization)
    placement = Placement(modules, device)
    parts = Parts(
        Conditioner(modules.text_encoders, checkpoint),
        UNetDenoiser(modules.unet, checkpoint.noise_config.preconditioning, device.dtype),
        SdxlVae(modules.vae, device.torch_device, checkpoint.latent_scaling),
        opened,
    )
    if device.prepacked:
        prepack_unet(modules.unet, checkpoint.native_latent_shape)
        prepack_vae(modules.vae, checkpoint.native_latent_shape)
    keep_conditioning(modules.unet, _tokens(images, strict=strict))
    savings = SAVINGS_BY_DEVICE.get(device.torch_device.type)
    if savings is None:  # a CPU pages, and a step of the largest image would take it minutes
        plan = MemoryPlan(images)
        placement.apply(())
    else:
        probe = MemoryProbe(
            parts,
            placement,
            device,
            native_size=checkpoint.native_size,
            strict=strict,
            reserve_for=reserve_for,
            extension_bytes=extensions.num_bytes(device.dtype) if extensions else 0,
            extension_work=extensions.work_per_pixel if extensions else 0.0,
        )
        plan = find_memory_plan(images, savings, probe, previous_plan)
        limit_kept_conditioning(modules.unet, _tokens(plan.images, strict=strict))
    parts = replace(parts, latent_to_rgb=fit_latent_to_rgb(parts.image_codec, device.torch_device))
    compiled = _compiled_unet(checkpoint, device, modules, parts.extensions, plan)
    if compiled is not None:
        preconditioning = checkpoint.noise_config.preconditioning
        parts = replace(parts, denoiser=UNetDenoiser(compiled, preconditioning, device.dtype))
    profile_of = partial(
        device.numeric_profile,
        checkpoint.stage,
        model=checkpoint.name,
        memory_savings=plan.savings,
        weights=checkpoint_digest(checkpoint),
    )
    images, profile, lane_counts = fit_lanes(
        parts,
        device,
        profile_of,
        plan.images,
        strict=strict,
        proofs=proofs,
        is_ready=compiled.is_ready if compiled else always_ready,
    )
    model = StageModel(
        profile=profile,
        memory_plan=plan,
        device=device,
        parts=parts,
        images=images,
        lane_counts=lane_counts,
        safety=safety,
        offloadable=placement,
        warm_up=_warm_up(parts, profile, compiled, lane_counts, images, device),
    )
    model.record_self_test()
    logger.info("%s is ready as %s: %s", checkpoint.name, checkpoint.stage, model.profile)
    return model


def _tokens(images: int, *, strict: bool) -> int:
    """Return the tokens of a full batch whose prompts have one chunk each."""
    batch = BatchSize(images, lane_counts_for(images, strict=strict))
    return batch.rows * ENCODED_TOKENS


def _warm_up(
    parts: Parts,
    profile: NumericProfile,
    compiled: CompiledUNet | None,
    lane_counts: LaneCounts,
    images: int,
    device: Device,
) -> Callable[[OnWarmUp], None]:
    """Return what compiles a model before it is ready; in fast mode too for powers of two alone."""
    if compiled is None:
        return lambda on_progress: None
    counts = lane_counts.counts or lane_counts_for(images, strict=True)
    return partial(warm_up, parts, profile, compiled, lane_counts, counts, device.torch_device)


def _compiled_unet(
    checkpoint: Checkpoint,
    device: Device,
    modules: Modules,
    extensions: ExtensionSet,
    plan: MemoryPlan,
) -> CompiledUNet | None:
    """Return the UNet that is compiled for its aspect sizes; None if everything runs eager."""
    mode = device.compile_mode_with(plan.savings)
    if mode == "off":
        if device.compile_mode != "off":
            logger.warning(
                "MODEL_COMPILE=%s has no effect on %s: its UNet is kept on the CPU",
                device.compile_mode,
                checkpoint.name,
            )
        return None
    sizes = SizeRules(checkpoint.native_size).aspect_sizes
    shapes = [(height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT) for width, height in sizes]
    return CompiledUNet(modules.unet, compiler(mode), shapes, lambda: extensions.has_active)
