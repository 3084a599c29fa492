"""The names of a LoRA file's tensors: which layer of which network, and which part of its change.

The names of kohya's sd-scripts, diffusers (three generations), peft, LyCORIS, ComfyUI and
OneTrainer are known. No torch.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.runtime.checkpoints.model_layers import TEXT_ENCODER, TEXT_ENCODER_2, UNET

_PREFIXES = (  # how names begin, and the network of the layer
    ("lora_unet_", UNET),
    ("lora_te1_", TEXT_ENCODER),
    ("lora_te2_", TEXT_ENCODER_2),
    ("lycoris_", UNET),
    ("unet.", UNET),
    ("text_encoder.", TEXT_ENCODER),
    ("text_encoder_2.", TEXT_ENCODER_2),
    ("text_encoders.clip_l.transformer.", TEXT_ENCODER),
    ("text_encoders.clip_g.transformer.", TEXT_ENCODER_2),
    ("clip_l.", TEXT_ENCODER),
    ("clip_g.", TEXT_ENCODER_2),
    ("model.diffusion_model.", UNET),
    ("diffusion_model.", UNET),
)
_WRAPPERS = ("base_model.model.", "_orig_mod.", "module.")  # of peft, torch.compile and DDP
_PARTS = tuple(  # how names end; what the groups match is the part, which `_PART_NAMES` may rename
    re.compile(pattern + "$")
    for pattern in (
        r"\.lora_(down|up|mid)\.weight",
        r"(?:\.lora|\.lora_linear_layer|_lora)\.(down|up)\.weight",
        r"\.lora_([AB])(?:\.[^.]+)?\.weight",
        r"\.lora_(B)(?:\.[^.]+)?\.(bias)",
        r"\.(lora_magnitude_vector)(?:\.[^.]+)??(?:\.weight)?",
        r"(?:\.lora|\.lora_linear_layer|_lora)?\.(alpha)",
        r"\.(dora_scale|diff|diff_b)",
        r"\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))",
    )
)
_PART_NAMES = {
    "A": "down",
    "B": "up",
    "Bbias": "bias",
    "diff_b": "bias",
    "lora_magnitude_vector": "magnitude",
    "dora_scale": "magnitude",
}
_OF_UNET = re.compile(
    r"(down|up|input|output)_blocks|mid(dle)?_block|conv_(in|out)|(time|add|label)_emb|out[._]2"
)
_SELF_ATTENTION = re.compile(r"\.self_attn\.to_(q|k|v|out)$")  # diffusers' old names

_OTHER_KINDS = tuple(  # of change, by what the names of their tensors contain
    (label, re.compile(pattern))
    for label, pattern in (
        ("a Control-LoRA", r"^lora_controlnet"),
        ("new words (a textual inversion)", r"^(bundle_emb|emb_params|string_to_param)"),
        ("IA3", r"\.on_input$|\.ia3_l\b"),
        ("OFT or BOFT", r"\.(oft|boft)_"),
        ("GLoRA", r"\.(a|b|bm)[12](\.weight)?$"),
        ("VeRA", r"\.vera_lambda"),
        ("a change of normalisation layers", r"\.[wb]_norm$"),
        ("a LoRA of embeddings", r"\.lora_embedding_[AB]"),
    )
)
_OTHER_MODELS = tuple(  # by names that SDXL does not have
    (label, re.compile(pattern))
    for label, pattern in (
        ("Stable Diffusion 3", r"joint_blocks|attn[._]add_[qkv]_proj"),
        ("Flux", r"double_blocks|single_blocks|single_transformer_blocks"),
        ("Stable Diffusion 1 or 2", r"^lora_te_"),
        ("Stable Cascade", r"^lora_prior_"),
        ("a model with a T5 text encoder", r"^lora_te3_|^text_encoder_3\.|^t5"),
        ("a diffusion transformer", r"^(lora_)?transformer[._]"),
        (
            "a diffusion transformer",
            r"^((model\.)?diffusion_model\.|lora_unet_)(blocks|layers|transformer_blocks)[._]",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class TensorName:
    """What the name of one tensor says."""

    stem: str  # what the names of all tensors of a layer begin with
    part: str  # of the layer's change, such as "down"

    @property
    def network(self) -> str | None:
        """The network of the layer; None where the name does not tell."""
        prefix, layer = self._split()
        return prefix or (UNET if _OF_UNET.match(layer) else None)

    @property
    def layer(self) -> str:
        """The layer's name without its network, as diffusers or kohya writes it, or published."""
        network, layer = self._split()
        if network != UNET and (old := _SELF_ATTENTION.search(layer)):
            return f"{layer[: old.start()]}.self_attn.{old[1]}_proj"
        if ".processor." in layer:
            layer = layer.replace(".processor.", ".")
            return f"{layer}.0" if layer.endswith(".to_out") else layer
        return layer

    def _split(self) -> tuple[str | None, str]:
        """Return the network that the prefix names, if there is one, and the rest."""
        name = _unwrapped(self.stem)
        for prefix, network in _PREFIXES:
            if name.startswith(prefix):
                return network, _unwrapped(name.removeprefix(prefix))
        return None, name


def read_name(name: str) -> TensorName | None:
    """Return what a tensor's name says; None if it belongs to no change that can be loaded."""
    for pattern in _PARTS:
        if match := pattern.search(name):
            part = "".join(match.groups())
            return TensorName(name[: match.start()], _PART_NAMES.get(part, part))
    return None


def other_model(names: Iterable[str]) -> str | None:
    """Return the kind of model that layers of these names belong to, if it is known not to fit."""
    return _first_label(_OTHER_MODELS, names)


def other_kind(names: Iterable[str]) -> tuple[str, int] | None:
    """Return a kind of change that can't be loaded, and how many of the tensors are of it."""
    names = tuple(names)
    label = _first_label(_OTHER_KINDS, names)
    if label is None:
        return None
    pattern = dict(_OTHER_KINDS)[label]
    return label, sum(pattern.search(name) is not None for name in names)


def _first_label(table: Iterable[tuple[str, re.Pattern[str]]], names: Iterable[str]) -> str | None:
    names = tuple(names)
    return next((label for label, p in table if any(p.search(name) for name in names)), None)


def _unwrapped(name: str) -> str:
    """Return a name without what wrappers of a module put first."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
