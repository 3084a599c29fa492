"""From a checkpoint to modules in the CPU's memory: nothing missing, nothing surplus, no NaN.

Modules are made without memory from their configs, and then get the tensors of the checkpoint's
weight plan. How much of a checkpoint the device can hold is the business of `runtime.memory`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from serve_app.core.errors import AuraError, CheckpointError
from serve_app.runtime.checkpoints.checkpoint import Checkpoint, weight_plans
from serve_app.runtime.checkpoints.network_weights import read_config
from serve_app.runtime.checkpoints.weight_plan import WeightPlan
from serve_app.runtime.memory.device import Device, is_out_of_memory
from serve_app.runtime.networks.quiet import diffusers, transformers
from serve_app.runtime.networks.text_encoders import ClipTextEncoders
from serve_app.runtime.networks.weights import read_weights

_DIFFUSERS = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
_TRANSFORMERS = {
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}
_TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
_MAX_CHARS = 200  # of what a library says


@dataclass(frozen=True, slots=True)
class Modules:
    """The networks of one stage, in evaluation mode.

    `beside` holds the networks that attached extensions have of their own, which are offloaded and
    counted with the rest.
    """

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoders: ClipTextEncoders
    beside: list[Any] = field(default_factory=list)


def load(checkpoint: Checkpoint, device: Device) -> Modules:
    """Return the modules of a checkpoint in the dtypes of a device, still on the CPU.

    Reads only safetensors and only local files. Raises `CheckpointError`, with the checkpoint's
    path as its subject, for weights that are not whole or not finite, and for a config or a
    tokenizer that its library refuses.
    """
    try:
        return _load(checkpoint, device)
    except CheckpointError as error:
        raise error.about(str(checkpoint.path)) from error.__cause__


def load_unet(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Return the UNet of a checkpoint alone, on the CPU. Raises `CheckpointError`."""
    options = read_config(checkpoint.folder, "unet").model_dump()
    return _build(_DIFFUSERS["unet"], options, weight_plans(checkpoint)["unet"], dtype)


def build_clip(
    model_class: Any, options: Mapping[str, Any], plan: WeightPlan, dtype: torch.dtype
) -> Any:
    """Return a model of transformers with these options and the weights of a plan.

    Raises `CheckpointError`.
    """
    tensors = read_weights(plan, dtype)
    with _library_errors(model_class, "a network"):
        model, info = model_class.from_pretrained(
            None,
            config=model_class.config_class(**options),
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
        )
        _check_names(info)
    return model.eval()


def _load(checkpoint: Checkpoint, device: Device) -> Modules:
    networks: dict[str, Any] = dict.fromkeys(("unet", "vae", *_TRANSFORMERS))
    for name, plan in weight_plans(checkpoint).items():
        options = read_config(checkpoint.folder, name).model_dump()
        dtype = device.vae_dtype if name == "vae" else device.dtype
        if name in _DIFFUSERS:
            networks[name] = _build(_DIFFUSERS[name], options, plan, dtype)
        else:
            networks[name] = build_clip(_TRANSFORMERS[name], options, plan, dtype)
    if device.attention == "xformers":
        networks["unet"].enable_xformers_memory_efficient_attention()
    encoders = [
        (_tokenizer(checkpoint.folder / name, encoder.config.vocab_size), encoder)
        for name, encoder in ((name, networks[of]) for name, of in _TOKENIZERS.items())
        if encoder is not None
    ]
    text_encoders = ClipTextEncoders(encoders, device.torch_device)
    return Modules(networks["unet"], networks["vae"], text_encoders)


def _build(
    model_class: Any, options: Mapping[str, Any], plan: WeightPlan, dtype: torch.dtype
) -> Any:
    """Return a model of diffusers with these options and the weights of a plan."""
    tensors = read_weights(plan, dtype)
    with _library_errors(model_class, "a network"):
        with torch.device("meta"):
            model = model_class.from_config(dict(options))
        model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _tokenizer(folder: Path, vocab_size: int) -> Any:
    """Return a tokenizer whose tokens the text encoder has.

    Raises `CheckpointError` also for one that fails when it is used.
    """
    with _library_errors(transformers.CLIPTokenizer, f"the folder {folder.name}"):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer("a fox", add_special_tokens=False, verbose=False).input_ids
        ids += [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        if not ids or not all(isinstance(id, int) and 0 <= id < vocab_size for id in ids):
            raise ValueError(f'"a fox" has the tokens {ids}, and the text encoder {vocab_size}')
        tokenizer.get_vocab()
    return tokenizer


def _check_names(info: Mapping[str, Any]) -> None:
    """Raise `ValueError` if transformers found other names than the plan has."""
    problems = [
        f"{kind}: {', '.join(sorted(map(str, names)))}" for kind, names in info.items() if names
    ]
    if problems:
        raise ValueError("; ".join(problems))


@contextmanager
def _library_errors(library_class: Any, what: str) -> Iterator[None]:
    """Turn what a library raises, which can be anything, into a `CheckpointError` of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, AuraError) or is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:_MAX_CHARS]
        raise CheckpointError(
            f"holds {what}, which {library_class.__name__} refuses: {type(error).__name__}: {text}"
        ) from error
