"""The weight plan of each network of a checkpoint: its config, its tensors, and where they are.

The networks are those of a diffusers folder, by the names of their folders, and the safety checker.
No torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from serve_app.runtime.checkpoints.clip_configs import (
    PreprocessorConfig,
    ProjectedTextEncoderConfig,
    SafetyCheckerConfig,
    TextEncoderConfig,
)
from serve_app.runtime.checkpoints.clip_layout import (
    open_clip_source,
    safety_checker_tensors,
    text_model_tensors,
)
from serve_app.runtime.checkpoints.diffusion_configs import UNetConfig, VaeConfig
from serve_app.runtime.checkpoints.network_config import NetworkConfig, read_network_config
from serve_app.runtime.checkpoints.network_folder import read_json, read_weights
from serve_app.runtime.checkpoints.safetensors_header import Header
from serve_app.runtime.checkpoints.tensor_layout import Source, TensorSpec, View
from serve_app.runtime.checkpoints.unet_layout import unet_tensors
from serve_app.runtime.checkpoints.vae_layout import ATTENTION, OLD_ATTENTION, vae_tensors
from serve_app.runtime.checkpoints.weight_plan import WeightPlan, check_surplus, plan_weights

CONFIGS: Mapping[str, type[NetworkConfig]] = {
    "unet": UNetConfig,
    "vae": VaeConfig,
    "text_encoder": TextEncoderConfig,
    "text_encoder_2": ProjectedTextEncoderConfig,
}
_PROJECTION = "text_projection.weight"
_PREPROCESSOR = "preprocessor_config.json"
_SAFETY_CHECKER = "safety_checker"


@dataclass(frozen=True, slots=True)
class SafetyCheckerFiles:
    """A safety checker: its config, its weights, and what it does to an image first."""

    config: SafetyCheckerConfig
    plan: WeightPlan
    preprocessor: PreprocessorConfig


def read_config(folder: Path, network: str) -> NetworkConfig:
    """Return the config of a checkpoint's network. Raises `CheckpointError`."""
    name = f"{network}/config.json"
    return read_network_config(CONFIGS[network], read_json(folder, name), name)


def network_in_folder(folder: Path, network: str) -> WeightPlan:
    """Return the plan of a network in a checkpoint's folder.

    Raises `CheckpointError` unless it is whole.
    """
    config = read_config(folder, network)
    weights = read_weights(folder / network, network)
    return plan_weights(
        folder_specs(config),
        weights.tensors,
        where=weights.label,
        config=f"{network}/config.json",
    )


def plans_in_file(
    header: Header, label: str, prefixes: Mapping[str, str], configs: Path
) -> dict[str, WeightPlan]:
    """Return the plans of the networks in a single file, whose tensors begin with `prefixes`.

    Raises `CheckpointError` when it does not match the configs in a folder, or has tensors that
    nothing reads.
    """
    plans = {}
    for network, prefix in prefixes.items():
        config = read_config(configs, network)
        plans[network] = plan_weights(
            published_specs(config, prefix),
            header.tensors,
            where=label,
            config=f"{configs}/{network}/config.json",
            is_own=partial(_starts_with, prefix),
        )
    used = frozenset[str]().union(*(plan.used for plan in plans.values()))
    check_surplus((name for name in header.tensors if name not in used), label)
    return plans


def safety_checker_in_folder(folder: Path) -> SafetyCheckerFiles:
    """Return the files of a safety checker. Raises `CheckpointError` unless it is whole."""
    content = read_json(folder, "config.json")
    config = read_network_config(SafetyCheckerConfig, content, "config.json")
    weights = read_weights(folder, _SAFETY_CHECKER, label="")
    specs = (
        TensorSpec(name, shape, (Source(name), Source(f"vision_model.{name}")))
        for name, shape in safety_checker_tensors(config)
    )
    plan = plan_weights(specs, weights.tensors, where=weights.label, config="config.json")
    has_preprocessor = (folder / _PREPROCESSOR).is_file()
    content = read_json(folder, _PREPROCESSOR) if has_preprocessor else {}
    preprocessor = read_network_config(PreprocessorConfig, content, _PREPROCESSOR)
    return SafetyCheckerFiles(config, plan, preprocessor)


def folder_specs(config: NetworkConfig) -> Iterator[TensorSpec]:
    """Yield the tensors of a network, with their names in a diffusers folder.

    Old files call the layers of the VAE's attention otherwise, and the text encoders' tensors have
    a prefix or not, by the version of transformers that wrote them.
    """
    match config:
        case UNetConfig():
            for name, _, shape in unet_tensors(config):
                yield TensorSpec(name, shape, (Source(name),))
        case VaeConfig():
            for name, _, shape in vae_tensors(config):
                yield TensorSpec(name, shape, (Source(name), *_old_vae_source(name)))
        case TextEncoderConfig():
            for name, shape in text_model_tensors(config):
                names = (name, f"text_model.{name}")
                sources = tuple(map(Source, names))
                yield TensorSpec(_text_name(config, name), shape, sources)
            if isinstance(config, ProjectedTextEncoderConfig):
                shape = (config.projection_dim, config.hidden_size)
                yield TensorSpec(_PROJECTION, shape, (Source(_PROJECTION),))
        case _:
            raise TypeError(type(config))


def published_specs(config: NetworkConfig, prefix: str) -> Iterator[TensorSpec]:
    """Yield the tensors of a network, with their names in a single file after a prefix."""
    match config:
        case UNetConfig():
            for name, published, shape in unet_tensors(config):
                yield TensorSpec(name, shape, (Source(prefix + published),))
        case VaeConfig():
            for name, published, shape in vae_tensors(config):
                is_attention = ".attentions." in name and len(shape) == 2
                view = View.FLATTENED if is_attention else View.SAME
                yield TensorSpec(name, shape, (Source(prefix + published, view),))
        case ProjectedTextEncoderConfig():  # OpenCLIP's
            tensors = [*text_model_tensors(config)]
            tensors.append((_PROJECTION, (config.projection_dim, config.hidden_size)))
            for name, shape in tensors:
                source = open_clip_source(name)
                sources = [Source(prefix + source.name, source.view)]
                if name == _PROJECTION:  # old converters left it as it is in transformers
                    sources.append(Source(prefix + _PROJECTION))
                ours = name if name == _PROJECTION else _text_name(config, name)
                yield TensorSpec(ours, shape, tuple(sources))
        case TextEncoderConfig():
            for name, shape in text_model_tensors(config):
                yield TensorSpec(name, shape, (Source(f"{prefix}text_model.{name}"),))
        case _:
            raise TypeError(type(config))


def _starts_with(prefix: str, name: str) -> bool:
    return name.startswith(prefix)


def _text_name(config: TextEncoderConfig, name: str) -> str:
    """Return the module's name: a CLIPTextModelWithProjection has its text half as a part."""
    return f"text_model.{name}" if isinstance(config, ProjectedTextEncoderConfig) else name


def _old_vae_source(name: str) -> tuple[Source, ...]:
    for part in ATTENTION:
        if f".attentions.0.{part}." in name:
            return (Source(name.replace(f".{part}.", f".{OLD_ATTENTION[part]}.")),)
    return ()
