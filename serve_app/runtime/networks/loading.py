"""The only `from_pretrained`: a checkpoint, folder or single file, to modules in the CPU's memory.

Knows no samples and no steps, and not how much of it the device can hold: see `memory`.
"""

from dataclasses import dataclass
from typing import Any

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.quiet import diffusers
from serve_app.runtime.networks.text_encoders import ClipTextEncoders


@dataclass(frozen=True, slots=True)
class Modules:
    """The networks of one stage, in evaluation mode."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoders: ClipTextEncoders
    pipeline: Any  # StableDiffusionXLPipeline, or Img2Img: the same networks, for what loads LoRAs


def load(checkpoint: Checkpoint, device: Device) -> Modules:
    """The modules of a checkpoint as the device wants them, not on it yet.

    Only safetensors, only local files.
    """
    make = _from_file if checkpoint.file else _from_folder
    pipeline = make(checkpoint, device)
    if device.attention == "xformers":
        pipeline.unet.enable_xformers_memory_efficient_attention()
    for network in (pipeline.unet, pipeline.vae):
        network.eval().requires_grad_(False)
    first, second = (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    )
    encoders = (
        [first, second] if pipeline.text_encoder is not None else [second]
    )  # the refiner has one
    prompts = ClipTextEncoders(encoders, device.torch_device)
    return Modules(pipeline.unet, pipeline.vae, prompts, pipeline)


def _from_folder(checkpoint: Checkpoint, device: Device, **parts: Any) -> Any:
    """The pipeline of a folder; `parts` are not loaded from it, but given, or None."""
    return diffusers.DiffusionPipeline.from_pretrained(
        checkpoint.folder,
        dtype={"default": device.dtype, "vae": device.vae_dtype},
        variant=checkpoint.variant,
        use_safetensors=True,
        local_files_only=True,
        add_watermarker=False,  # where installed it would alter every picture
        **parts,
    )


def _from_file(checkpoint: Checkpoint, device: Device) -> Any:
    """The pipeline of a single file, with what it lacks from its folder.

    Raises `CheckpointError` when the file lacks tensors that the folder's configs promise.
    """
    file = checkpoint.file
    assert file is not None
    network = {"config": str(checkpoint.folder), "local_files_only": True}
    absent = dict.fromkeys(file.components)
    parts = _from_folder(checkpoint, device, **absent).components
    given = {name: part for name, part in parts.items() if name not in absent}
    kind = {
        Stage.BASE: diffusers.StableDiffusionXLPipeline,
        Stage.REFINER: diffusers.StableDiffusionXLImg2ImgPipeline,
    }[checkpoint.stage]
    try:
        if "vae" in file.components:
            given["vae"] = diffusers.AutoencoderKL.from_single_file(
                str(file.path), subfolder="vae", torch_dtype=device.vae_dtype, **network
            )
        return kind.from_single_file(
            str(file.path), torch_dtype=device.dtype, add_watermarker=False, **given, **network
        )
    except NotImplementedError as error:  # a tensor without data is moved to the CPU
        raise _mismatch(checkpoint, "it lacks tensors that they promise") from error
    except ValueError as error:  # its message names the tensor
        raise _mismatch(checkpoint, "one of its tensors has another shape") from error


def _mismatch(checkpoint: Checkpoint, problem: str) -> CheckpointError:
    return CheckpointError(
        f"does not match the configs in {checkpoint.folder}: {problem}",
        subject=str(checkpoint.path),
    )
