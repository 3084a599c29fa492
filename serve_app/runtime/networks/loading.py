"""The only `from_pretrained` of the service: from a checkpoint to modules in the CPU's memory.

How much of a checkpoint the device can hold is the business of `runtime.memory`.
"""

from dataclasses import dataclass, field
from typing import Any

from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.checkpoint import Checkpoint
from serve_app.runtime.checkpoints.single_file import SingleFile
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.quiet import diffusers
from serve_app.runtime.networks.text_encoders import ClipTextEncoders


@dataclass(frozen=True, slots=True)
class Modules:
    """The networks of one stage, in evaluation mode.

    `beside` holds the networks that attached extensions have of their own, which are offloaded and
    counted with the rest.
    """

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoders: ClipTextEncoders
    pipeline: Any  # StableDiffusionXLPipeline or Img2Img over the same networks: it loads LoRAs
    beside: list[Any] = field(default_factory=list)


def load(checkpoint: Checkpoint, device: Device) -> Modules:
    """Return the modules of a checkpoint in the dtypes of a device, still on the CPU.

    Reads only safetensors and only local files. Raises `CheckpointError` when a single file does
    not match the configs of its folder.
    """
    if checkpoint.file:
        pipeline = _load_file(checkpoint, checkpoint.file, device)
    else:
        pipeline = _load_folder(checkpoint, device)
    if device.attention == "xformers":
        pipeline.unet.enable_xformers_memory_efficient_attention()
    for network in (pipeline.unet, pipeline.vae):
        network.eval().requires_grad_(False)
    encoders = [
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ]
    if pipeline.text_encoder is None:  # the refiner has one text encoder, the second
        encoders = encoders[1:]
    text_encoders = ClipTextEncoders(encoders, device.torch_device)
    return Modules(pipeline.unet, pipeline.vae, text_encoders, pipeline)


def _load_folder(checkpoint: Checkpoint, device: Device, **components: Any) -> Any:
    """Return the pipeline of a folder; `components` are given, or None, instead of loaded."""
    return diffusers.DiffusionPipeline.from_pretrained(
        checkpoint.folder,
        dtype={"default": device.dtype, "vae": device.vae_dtype},
        variant=checkpoint.variant,
        use_safetensors=True,
        local_files_only=True,
        add_watermarker=False,  # where installed, it would alter every image
        **components,
    )


def _load_file(checkpoint: Checkpoint, file: SingleFile, device: Device) -> Any:
    """Return the pipeline of a single file, with what the file lacks from its folder."""
    config = {"config": str(checkpoint.folder), "local_files_only": True}
    in_file = dict.fromkeys(file.components)
    components = _load_folder(checkpoint, device, **in_file).components
    given = {name: component for name, component in components.items() if name not in in_file}
    pipeline_class = {
        Stage.BASE: diffusers.StableDiffusionXLPipeline,
        Stage.REFINER: diffusers.StableDiffusionXLImg2ImgPipeline,
    }[checkpoint.stage]
    try:
        if "vae" in file.components:
            given["vae"] = diffusers.AutoencoderKL.from_single_file(
                str(file.path), subfolder="vae", torch_dtype=device.vae_dtype, **config
            )
        return pipeline_class.from_single_file(
            str(file.path), torch_dtype=device.dtype, add_watermarker=False, **given, **config
        )
    except NotImplementedError as error:  # torch: a tensor without data can't be moved
        raise _mismatch(checkpoint, "it lacks tensors that they promise") from error
    except ValueError as error:  # diffusers, whose message names the tensor
        raise _mismatch(checkpoint, "one of its tensors has another shape") from error


def _mismatch(checkpoint: Checkpoint, problem: str) -> CheckpointError:
    return CheckpointError(
        f"does not match the configs in {checkpoint.folder}: {problem}",
        subject=str(checkpoint.path),
    )
