"""`WeightPlan`: which stored values become which tensor of a network, from headers alone. No torch.

The tensors that a network needs are compared with those that its files have. Whatever is missing,
has another shape or type, or would be read by nobody is refused by name: the libraries fill gaps
with random numbers, and drop what they don't know.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.network_folder import listed
from serve_app.runtime.checkpoints.safetensors_header import StoredTensor
from serve_app.runtime.checkpoints.tensor_layout import Shape, Source, TensorSpec, View

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_SCALED = {"I8", "U8"}  # readable with a scale beside them
_SCALES = ("scale_weight", "weight_scale")  # of a weight, beside it
_QUANTIZATION = "comfy_quant"  # beside a weight: JSON that names the format
_FORMATS = {"float8_e4m3fn", "float8_e5m2", "int8_tensorwise"}  # value times scale
_FORMAT_KEYS = {"format", "full_precision_matrix_mult"}
_NOT_POOLED = "SDXL takes no pooled embedding from its first text encoder"
UNREAD = {  # patterns of names that may pass unread, and why
    r"(first_stage_model\.)?model_ema\..*": "moving averages, for training",
    r"first_stage_model\.loss\..*": "the critic that the VAE was trained against",
    r".*embeddings\.position_ids": "0 to 76, in order",
    r".*\.attn_mask": "the causal mask, which is constant",
    r"(.*\.)?logit_scale": "the temperature of CLIP's training",
    r"conditioner\.embedders\.0\.(transformer\.)?text_projection(\.weight)?": _NOT_POOLED,
    r"(denoiser\.(log_)?sigmas|betas|alphas_cumprod|alphas_cumprod_prev|(sqrt|log)_.*alphas_cumprod"
    r"(_minus_one)?|posterior_(variance|log_variance_clipped|mean_coef[12])|model\.betas)": "the "
    "noise schedule, which the scheduler's config gives",
    r"lvlb_weights|logvar": "weights of the training's loss",
    r"v_pred|ztsnr|edm_(mean|std|vpred\.sigma_(min|max))": "the noise schedule, read elsewhere",
    r"(.*\.)?scaled_fp8": "marks a file whose fp8 weights have scales",
    r".*\.(scale_input|input_scale)": "scales of activations, for arithmetic in fp8",
    r"text_projection\.weight": _NOT_POOLED,
    r"(vision_model|visual_projection)\..*": "the other half of CLIP",
}
_UNREAD = re.compile("|".join(f"(?:{pattern})" for pattern in UNREAD))


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """Stored values, the scale that they are multiplied by, and how they are then viewed."""

    shape: Shape  # in the module
    stored: StoredTensor
    view: View
    scale: StoredTensor | None = None


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """All tensors of one network, by their names in the module."""

    tensors: Mapping[str, PlannedTensor]
    used: frozenset[str]  # names in the files

    @property
    def num_parameters(self) -> int:
        """The number of its values."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def stored(self) -> list[StoredTensor]:
        """All stored tensors that are read, each once."""
        stored = {planned.stored.name: planned.stored for planned in self.tensors.values()}
        scales = (planned.scale for planned in self.tensors.values())
        return [*stored.values(), *(scale for scale in scales if scale)]


@dataclass(slots=True)
class _Problems:
    """What is wrong with the tensors of one network."""

    missing: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)


def plan_weights(
    specs: Iterable[TensorSpec],
    stored: Mapping[str, StoredTensor],
    *,
    where: str,
    config: str,
    is_own: Callable[[str], bool] = lambda name: True,
) -> WeightPlan:
    """Return where each tensor of a network comes from.

    `where` is what messages call the files, and `config` what they call the config that asks for
    the tensors. `is_own` says which names in the files belong to this network alone. Raises
    `CheckpointError`, which names the first tensors that are missing, surplus or of another shape.
    """
    tensors: dict[str, PlannedTensor] = {}
    used: set[str] = set()
    problems = _Problems()
    for spec in specs:
        source = next((source for source in spec.sources if source.name in stored), None)
        if source is None:
            problems.missing.append(spec.sources[0].name)
            continue
        tensor = stored[source.name]
        used.add(source.name)
        scale = _scale_of(tensor, stored, used, problems)
        _check(tensor, source, spec, scale, problems)
        tensors[spec.name] = PlannedTensor(spec.shape, tensor, source.view, scale)
    own = (name for name in stored if is_own(name))
    problems.surplus = [name for name in own if name not in used and not is_unread(name)]
    _raise_for(problems, where, config)
    return WeightPlan(tensors, frozenset(used))


def check_surplus(names: Iterable[str], where: str) -> None:
    """Raise `CheckpointError` for tensors that no network reads and that may not pass unread."""
    problems = _Problems(surplus=[name for name in names if not is_unread(name)])
    _raise_for(problems, where, "")


def is_unread(name: str) -> bool:
    """Return whether a tensor may pass unread: it has no part in making images."""
    return _UNREAD.fullmatch(name) is not None


def _scale_of(
    tensor: StoredTensor,
    stored: Mapping[str, StoredTensor],
    used: set[str],
    problems: _Problems,
) -> StoredTensor | None:
    """Return the scale beside a weight. Note what says that it is more than a factor."""
    if not tensor.name.endswith("weight"):
        return None
    stem = tensor.name.removesuffix("weight")
    quantization = stored.get(stem + _QUANTIZATION)
    if quantization is not None:
        used.add(quantization.name)
        if not _is_scaled_only(quantization):
            problems.unreadable.append(f"{tensor.name} ({_QUANTIZATION})")
    scales = [stored[stem + end] for end in _SCALES if stem + end in stored]
    used.update(scale.name for scale in scales)
    if len(scales) > 1:
        problems.unreadable.append(f"{scales[1].name} (a second scale)")
    return scales[0] if scales else None


def _is_scaled_only(quantization: StoredTensor) -> bool:
    """Return whether a weight's values are the stored ones times a scale, and no more."""
    try:
        content = json.loads(quantization.read_bytes())
        return content["format"] in _FORMATS and content.keys() <= _FORMAT_KEYS
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _check(
    tensor: StoredTensor,
    source: Source,
    spec: TensorSpec,
    scale: StoredTensor | None,
    problems: _Problems,
) -> None:
    if not source.fits(tensor.shape, spec.shape):
        problems.reshaped.append(f"{tensor.name} {list(tensor.shape)} for {list(spec.shape)}")
    if tensor.dtype not in (_FLOATS if scale is None else _FLOATS | _SCALED):
        problems.unreadable.append(f"{tensor.name} ({tensor.dtype})")
    if scale is not None and not _is_scale(scale, tensor):
        problems.unreadable.append(f"{scale.name} ({scale.dtype} {list(scale.shape)})")


def _is_scale(scale: StoredTensor, tensor: StoredTensor) -> bool:
    """Return whether a scale is one number, or one for each row."""
    rows = tensor.shape[:1]
    shapes = {(), (1,), rows, rows + (1,) * (len(tensor.shape) - 1)}
    return scale.dtype in _FLOATS and scale.shape in shapes


def _raise_for(problems: _Problems, where: str, config: str) -> None:
    groups = (
        ("without", f"that {config} asks for", problems.missing),
        ("with", f"of another shape than {config} asks for", problems.reshaped),
        ("with", "of a type that is not supported", problems.unreadable),
        ("with", "that nothing reads", problems.surplus),
    )
    parts = [
        f"{word} {len(names)} tensor{'s' if len(names) > 1 else ''} {clause} ({listed(names)})"
        for word, clause, names in groups
        if names
    ]
    if parts:
        raise CheckpointError(f"holds {where} {', and '.join(parts)}")
