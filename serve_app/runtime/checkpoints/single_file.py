"""A checkpoint in one .safetensors file, inspected without loading it. No torch.

The layout is the one in which SDXL was published, that of Stability AI's generative-models (LDM):
`model.diffusion_model`, `first_stage_model`, `conditioner.embedders`. Names and shapes of tensors
tell what the file is, and which networks it contains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.core.diffusion.spec import LATENT_CHANNELS, Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.file_markers import FileMarkers, read_markers
from serve_app.runtime.checkpoints.safetensors_header import Header, read_header

SUFFIX = ".safetensors"
_UNET = "model.diffusion_model."
_VAES = ("first_stage_model.", "vae.")
_CLIP = "conditioner.embedders.0.transformer."
_OPEN_CLIP = {  # the refiner has no other text encoder, so its index differs
    Stage.BASE: "conditioner.embedders.1.model.",
    Stage.REFINER: "conditioner.embedders.0.model.",
}
_CONV_IN = _UNET + "input_blocks.0.0.weight"  # (block_out_channels[0], in_channels, 3, 3)
_LABEL_EMB = _UNET + "label_emb.0.0.weight"  # embeds pooled text and time ids
_CROSS_ATTENTION = ".attn2.to_k.weight"
_STAGE_OF_DIM = {2048: Stage.BASE, 1280: Stage.REFINER}  # by cross_attention_dim
_OLD_MODEL_OF_DIM = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
_FOREIGN_KINDS = (  # a part of a tensor's name, and the problem of a file that has such a tensor
    ("lora_", "is a LoRA and no whole checkpoint"),
    (".lora", "is a LoRA and no whole checkpoint"),
    ("hada_w1_a", "is a LoRA and no whole checkpoint"),
    ("lokr_w1", "is a LoRA and no whole checkpoint"),
    ("control_model.", "is a ControlNet and no whole checkpoint"),
    ("double_blocks.", "is a Flux checkpoint; only SDXL runs here"),
    ("joint_blocks.", "is a Stable Diffusion 3 checkpoint; only SDXL runs here"),
    ("cond_stage_model.transformer.", "is a Stable Diffusion 1 checkpoint; only SDXL runs here"),
    ("cond_stage_model.model.", "is a Stable Diffusion 2 checkpoint; only SDXL runs here"),
    (
        "down_blocks.0.resnets.",
        "is one network in diffusers' layout: name the whole folder instead",
    ),
    ("string_to_param", "is a textual inversion and no whole checkpoint"),
)


@dataclass(frozen=True, slots=True)
class SingleFile:
    """What the header of an SDXL checkpoint in one file says."""

    path: Path
    stage: Stage | None  # None: a UNet alone, of sizes other than SDXL's own
    prefixes: Mapping[str, str]  # of each network's tensors, by its name in a diffusers folder
    markers: FileMarkers  # what it says of its noise and its latents
    title: str  # "modelspec.title" of its metadata, or ""
    license: str  # "modelspec.license" of its metadata, or ""
    header: Header

    @property
    def components(self) -> frozenset[str]:
        """Its networks, by their names in a diffusers folder."""
        return frozenset(self.prefixes)


def read_single_file(path: Path) -> SingleFile:
    """Return what a file is. Raises `CheckpointError` when it is no whole SDXL checkpoint."""
    header = read_header(path, path.name)
    names = header.tensors.keys()
    _check_kind(header)

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    is_refiner, is_base, has_clip = (
        has(_OPEN_CLIP[Stage.REFINER]),
        has(_OPEN_CLIP[Stage.BASE]),
        has(_CLIP),
    )
    if is_base != has_clip:
        present, missing = ("second", "first") if is_base else ("first", "second")
        raise CheckpointError(f"holds the {present} text encoder and lacks the {missing}")
    prefixes = {"unet": _UNET}
    if has(*_VAES):
        prefixes["vae"] = next(prefix for prefix in _VAES if has(prefix))
    if has_clip:
        prefixes["text_encoder"] = _CLIP
    if is_base or is_refiner:
        prefixes["text_encoder_2"] = _OPEN_CLIP[Stage.BASE if is_base else Stage.REFINER]
    metadata = header.metadata
    return SingleFile(
        path=path,
        stage=Stage.BASE if is_base else Stage.REFINER if is_refiner else _stage_of_unet(header),
        prefixes=prefixes,
        markers=read_markers(path, header),
        title=metadata.get("modelspec.title", ""),
        license=metadata.get("modelspec.license", ""),
        header=header,
    )


def _stage_of_unet(header: Header) -> Stage | None:
    """Return the stage by the UNet's cross_attention_dim."""
    dims = {shape[-1] for name, shape in header.shapes.items() if name.endswith(_CROSS_ATTENTION)}
    return _STAGE_OF_DIM.get(dims.pop()) if len(dims) == 1 else None


def _check_kind(header: Header) -> None:
    """Raise `CheckpointError`, which says what the file is, unless it is SDXL of either stage."""
    shapes = header.shapes
    if not {_CONV_IN, _LABEL_EMB} <= shapes.keys():  # in an SDXL they would be remains of a merge
        for part, problem in _FOREIGN_KINDS:
            if any(part in name for name in shapes):
                raise CheckpointError(problem)
    if _CONV_IN not in shapes:
        is_vae = any(
            name.removeprefix(prefix).startswith("decoder.conv_in")
            for name in shapes
            for prefix in _VAES
        )
        raise CheckpointError(
            "is a VAE and no whole checkpoint" if is_vae else "holds no SDXL: its UNet is missing"
        )
    for name, shape in shapes.items():
        if name.endswith(_CROSS_ATTENTION) and shape[-1] in _OLD_MODEL_OF_DIM:
            raise CheckpointError(
                f"is a {_OLD_MODEL_OF_DIM[shape[-1]]} checkpoint; only SDXL runs here"
            )
    if _LABEL_EMB not in shapes:
        raise CheckpointError("holds no SDXL: its UNet takes no image sizes (label_emb)")
    if shapes[_CONV_IN][1:2] != (LATENT_CHANNELS,):
        raise CheckpointError(
            f"is an inpainting or editing checkpoint ({shapes[_CONV_IN][1]} channels in); only "
            "plain SDXL runs here"
        )
