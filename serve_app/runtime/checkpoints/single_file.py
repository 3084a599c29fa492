"""A checkpoint in one file, in the layout SDXL was published in: what is it, and what is inside?

Knows no torch: names and shapes of tensors say it all. The layout is that of Stability's
generative-models (LDM): `model.diffusion_model`, `first_stage_model`, `conditioner.embedders`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from serve_app.core.diffusion.spec import LATENT_CHANNELS, Stage
from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.safetensors_header import Header, read_header

SUFFIX = ".safetensors"
_UNET = "model.diffusion_model."
_VAES = ("first_stage_model.", "vae.")
_CLIP = "conditioner.embedders.0.transformer."
_OPEN_CLIP = {  # by stage: the refiner has no other text encoder
    Stage.BASE: "conditioner.embedders.1.model.",
    Stage.REFINER: "conditioner.embedders.0.model.",
}
_FIRST = _UNET + "input_blocks.0.0.weight"
_LABEL = _UNET + "label_emb.0.0.weight"
_CROSS_ATTENTION = ".attn2.to_k.weight"
_CONTEXTS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}  # width of what is attended to
_FOREIGN_KINDS = (  # part of a tensor's name, and what has such a part
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
    """A whole SDXL in one file, as its header has it."""

    path: Path
    stage: Stage | None  # None: a UNet alone, of sizes that are not SDXL's own
    components: frozenset[str]  # networks, by their names in a diffusers folder
    prediction_type: str | None  # None: it does not say
    rescale_betas_zero_snr: bool | None  # None: it does not say
    title: str  # what its notes call it, "" when they don't
    license: str  # what its notes say of terms, "" when they don't
    header: Header

    def num_parameters(self) -> dict[str, int]:
        """How many numbers the weights of each network inside have."""
        open_clip = _OPEN_CLIP[self.stage or Stage.BASE]
        begin = {
            "unet": (_UNET,),
            "vae": _VAES,
            "text_encoder": (_CLIP,),
            "text_encoder_2": (open_clip,),
        }
        shapes = self.header.shapes
        return {
            name: sum(prod(shape) for key, shape in shapes.items() if key.startswith(begin[name]))
            for name in self.components
        }

    def config_mismatch(self, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Return how this file contradicts configs of networks, None when they describe it."""
        unet = configs["unet"]
        wanted = {
            _FIRST: (0, next(iter(unet.get("block_out_channels", ())), None)),
            _LABEL: (1, unet.get("projection_class_embeddings_input_dim")),
            self._cross_attention: (1, unet.get("cross_attention_dim")),
        }
        if self.stage is not None and "text_encoder_2" in self.components:
            name = _OPEN_CLIP[self.stage] + "positional_embedding"
            wanted[name] = (1, configs["text_encoder_2"].get("hidden_size"))
        for name, (axis, size) in wanted.items():
            shape = self.header.shapes.get(name, ())
            if len(shape) <= axis or shape[axis] != size:
                return f"its {name} has shape {list(shape)}, and they want {size} on axis {axis}"
        return None

    @property
    def _cross_attention(self) -> str:
        return next(
            (n for n in sorted(self.header.shapes) if n.endswith(_CROSS_ATTENTION)),
            _CROSS_ATTENTION,
        )


def read_single_file(path: Path) -> SingleFile:
    """What a file is. Raises `CheckpointError` when it is no whole SDXL."""
    header = read_header(path, path.name)
    names = header.shapes.keys()
    _check_kind(header)
    refiner = any(name.startswith(_OPEN_CLIP[Stage.REFINER]) for name in names)
    base = any(name.startswith(_OPEN_CLIP[Stage.BASE]) for name in names)
    clip = any(name.startswith(_CLIP) for name in names)
    if base != clip:
        there, lacking = ("second", "first") if base else ("first", "second")
        raise CheckpointError(f"holds the {there} text encoder and lacks the {lacking}")
    inside = {"unet"}
    if any(name.startswith(_VAES) for name in names):
        inside.add("vae")
    if base or refiner:
        inside.add("text_encoder_2")
    if clip:
        inside.add("text_encoder")
    notes = header.metadata
    said = notes.get("modelspec.prediction_type", "").lower()
    v = "v_pred" in names or said in ("v", "v_prediction", "v-prediction")
    return SingleFile(
        path=path,
        stage=Stage.BASE if base else Stage.REFINER if refiner else _stage_of_unet(header),
        components=frozenset(inside),
        prediction_type="v_prediction" if v else said if said == "epsilon" else None,
        rescale_betas_zero_snr=True if "ztsnr" in names else None,
        title=notes.get("modelspec.title", ""),
        license=notes.get("modelspec.license", ""),
        header=header,
    )


def _stage_of_unet(header: Header) -> Stage | None:
    """The stage by the width of what a UNet attends to."""
    widths = {shape[-1] for name, shape in header.shapes.items() if name.endswith(_CROSS_ATTENTION)}
    return {2048: Stage.BASE, 1280: Stage.REFINER}.get(widths.pop()) if len(widths) == 1 else None


def _check_kind(header: Header) -> None:
    """Returns for an SDXL of either stage; raises `CheckpointError` that says what it is else."""
    shapes = header.shapes
    for part, sentence in _FOREIGN_KINDS:
        if any(part in name for name in shapes):
            raise CheckpointError(sentence)
    if _FIRST not in shapes:
        vae = any(n.removeprefix(p).startswith("decoder.conv_in") for n in shapes for p in _VAES)
        raise CheckpointError(
            "is a VAE and no whole checkpoint" if vae else "holds no SDXL: its UNet is not there"
        )
    for name, shape in shapes.items():
        if name.endswith(_CROSS_ATTENTION) and shape[-1] in _CONTEXTS:
            raise CheckpointError(f"is a {_CONTEXTS[shape[-1]]} checkpoint; only SDXL runs here")
    if _LABEL not in shapes:
        raise CheckpointError("holds no SDXL: its UNet is told no picture sizes")
    if shapes[_FIRST][1:2] != (LATENT_CHANNELS,):
        raise CheckpointError(
            f"is an inpainting or editing checkpoint ({shapes[_FIRST][1]} channels in); only plain "
            "SDXL runs here"
        )
