"""A LoRA file, inspected without loading it: is it for SDXL, and which layers does it change?

Names and shapes of tensors are enough, so there is no torch here. LoRA's kin from LyCORIS counts
too: see `lora_layer`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.lora_config import (
    DIFFUSERS_FILE,
    PEFT_FILE,
    LoraConfigs,
    read_lora_configs,
)
from serve_app.runtime.checkpoints.lora_layer import LoraLayer, read_layer
from serve_app.runtime.checkpoints.lora_names import (
    TensorName,
    other_kind,
    other_model,
    read_name,
)
from serve_app.runtime.checkpoints.model_layers import NETWORKS, ModelLayers
from serve_app.runtime.checkpoints.safetensors_header import Header, read_header
from serve_app.runtime.checkpoints.single_file import SUFFIX

_MAX_NAMED = 3  # layers in a message; the rest are counted
_ARCHITECTURE = ("modelspec.architecture", "ss_base_model_version")  # of the metadata
_IS_SDXL = re.compile("sdxl|stable-diffusion-xl")
_OLD_MODEL_OF_WIDTH = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
_CROSS_ATTENTION = re.compile(r"attn2[._]to_[kv]$")
_CAN_BE_LOADED = "only LoRA, LoCon, LoHa, LoKr, DoRA and whole differences can"


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """A change, and the layer of a model that it is made to."""

    change: LoraLayer
    network: str
    layer: str


@dataclass(frozen=True, slots=True)
class LoraFile:
    """What the header of a LoRA for SDXL says."""

    path: Path
    layers: tuple[LoraLayer, ...]
    license: str  # "modelspec.license" of its metadata, or ""
    architecture: str = ""  # of the model that it was trained on, if its metadata says so
    configs: LoraConfigs = field(default_factory=dict)
    fingerprint: tuple[int, int] = field(default=(0, 0), compare=False)  # see `fingerprint_of`

    @property
    def num_parameters(self) -> int:
        """The numbers that it takes when it is attached."""
        return sum(layer.num_parameters for layer in self.layers)

    @property
    def is_unchanged(self) -> bool:
        """Return whether the file on disk is still the one whose header was read."""
        return fingerprint_of(self.path) == self.fingerprint

    def place(self, model: ModelLayers) -> tuple[PlacedLayer, ...]:
        """Return every change with the layer that it is made to.

        Raises `CheckpointError` that names the layers which find no place in the model, or another
        size there.
        """
        placed = [(change, _place(change, model)) for change in self.layers]
        homeless = [change.name.stem for change, place in placed if place is None]
        places = [place for _, place in placed if place]
        other_sizes = [
            f"{place.change.name.stem}: {_by(place.change.size)}, there {_by(size)}"
            for place in places
            if place.change.size != (size := _size_of(place, model))
        ]
        doubles = [
            name
            for name, count in Counter(f"{place.network}.{place.layer}" for place in places).items()
            if count > 1
        ]
        problems = [
            f"layers {what}: {len(names)} of {len(self.layers)} ({_named(names)})"
            for what, names in (
                ("without a place there", homeless),
                ("of another size", other_sizes),
                ("changed twice", doubles),
            )
            if names
        ]
        if problems:
            raise CheckpointError(
                f"does not fit {model.model}: {'; '.join(problems)}{self._origin()}"
            )
        return tuple(places)

    def misfit(self, model: ModelLayers) -> str | None:
        """Return why it does not fit a model, or None."""
        try:
            self.place(model)
        except CheckpointError as error:
            return error.problem
        return None

    def _origin(self) -> str:
        """Return what is known of the model that it was made for, as the end of a sentence."""
        widths = {c.size[1] for c in self.layers if _CROSS_ATTENTION.search(c.name.layer)}
        old = next((name for width, name in _OLD_MODEL_OF_WIDTH.items() if widths == {width}), None)
        return f". It was made for {old}" if old else _declared(self.architecture)


def inspect_lora(path: Path) -> LoraFile:
    """Return what a complete LoRA file says of itself; a folder may hold one.

    Raises `CheckpointError` with the path as its subject.
    """
    try:
        return _inspect(_file_in(path) if path.is_dir() else path)
    except CheckpointError as error:
        raise error.about(str(path)) from None


def fingerprint_of(path: Path) -> tuple[int, int]:
    """Return the size of a file in bytes and its modification time in ns. Raises `OSError`."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _file_in(folder: Path) -> Path:
    """Return the file of a folder that peft or diffusers wrote, or the only one there is."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    known = [file for file in files if file.name in (PEFT_FILE, DIFFUSERS_FILE)]
    if len(known) != 1 and len(files) != 1:
        raise CheckpointError(f"is a folder with {len(files)} {SUFFIX} files: name one of them")
    return (known or files)[0]


def _inspect(path: Path) -> LoraFile:
    if not path.exists():
        raise CheckpointError("does not exist")
    if path.suffix != SUFFIX:
        raise CheckpointError("is no .safetensors file: a pickle can run code")
    fingerprint = fingerprint_of(path)
    header = read_header(path, path.name)
    architecture = next(filter(None, map(header.metadata.get, _ARCHITECTURE)), "")
    try:
        layers = _read_layers(header)
    except CheckpointError as error:
        raise CheckpointError(f"{error.problem}{_declared(architecture)}") from None
    return LoraFile(
        path=path,
        layers=layers,
        license=header.metadata.get("modelspec.license", ""),
        architecture=architecture,
        configs=read_lora_configs(path, header.metadata),
        fingerprint=fingerprint,
    )


def _read_layers(header: Header) -> tuple[LoraLayer, ...]:
    """Return the changes in a file. Raises `CheckpointError` when there is anything else in it."""
    if model := other_model(header.shapes):
        raise CheckpointError(f"is a LoRA for {model}; only LoRAs for SDXL fit")
    if kind := other_kind(header.shapes):
        raise CheckpointError(
            f"holds {kind[0]} ({kind[1]} of its {len(header.shapes)} tensors), which can't be "
            f"loaded: {_CAN_BE_LOADED}"
        )
    names = {full: read_name(full) for full in header.shapes}
    if unknown := [full for full, name in names.items() if name is None]:
        raise CheckpointError(
            f"is no LoRA for SDXL: {len(unknown)} of its {len(names)} tensors have names of an "
            f"unknown kind, {_named(unknown)}"
        )
    by_layer: dict[str, tuple[TensorName, dict[str, str]]] = {}  # full names by part
    for full, name in names.items():
        if name:
            _, parts = by_layer.setdefault(name.stem, (name, {}))
            if name.part in parts:
                raise CheckpointError(f"holds several adapters: {parts[name.part]} and {full}")
            parts[name.part] = full
    layers, problems = [], []
    for name, parts in by_layer.values():
        shapes = {part: header.shapes[full] for part, full in parts.items()}
        try:
            layers.append(read_layer(name, parts, shapes))
        except CheckpointError as error:
            problems.append(error.problem)
    if problems:
        others = f" (and {len(problems) - 1} more of such layers)" if len(problems) > 1 else ""
        raise CheckpointError(problems[0] + others)
    if not layers:
        raise CheckpointError("is no LoRA for SDXL: it changes no layer")
    return tuple(layers)


def _place(change: LoraLayer, model: ModelLayers) -> PlacedLayer | None:
    """Return where a change is made; where its name fits two text encoders, its size decides."""
    networks = (change.name.network,) if change.name.network else NETWORKS
    places = [
        PlacedLayer(change, network, layer)
        for network in networks
        if (layer := model.find(network, change.name.layer))
    ]
    fitting = (place for place in places if _size_of(place, model) == change.size)
    return next(fitting, next(iter(places), None))


def _size_of(place: PlacedLayer, model: ModelLayers) -> tuple[int, int]:
    """Return out and in of the layer in the model."""
    shape = model.shapes[place.network][place.layer]
    return shape[0], prod(shape[1:])


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _named(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _declared(architecture: str) -> str:
    """Return the model that the metadata names, as the end of a sentence, unless it is SDXL."""
    if not architecture or _IS_SDXL.search(architecture.lower()):
        return ""
    return f". Its metadata names {architecture}"
