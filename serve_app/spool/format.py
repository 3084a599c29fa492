"""The bytes of a spooled job: a safetensors file, and never a pickle.

Latents, input files and PNGs are tensors with names such as `0.latents`. The rest is one JSON text
in the metadata of the header: frozen dataclasses, which pydantic validates when they are read. A
checksum of both tells what a failing disk has changed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from serve_app import __version__
from serve_app.core.diffusion.inputs import NO_INPUTS, ImageInputs
from serve_app.core.diffusion.sample import Sample
from serve_app.core.errors import InvalidRequest
from serve_app.core.service.jobs import IdempotencyClaim
from serve_app.core.service.suspicion import Suspicion
from serve_app.core.service.tasks import ImageSnapshot
from serve_app.spool.spooled_job import SpooledJob

VERSION = "1"
_VERSION_KEY, _JOB_KEY, _CHECKSUM_KEY = "aura-serve-spool", "job", "sha256"
_LENGTH_BYTES = 8  # of a safetensors file, before its header

Array = np.ndarray[Any, Any]
_Names = dict[str, str]  # of tensors, by the field that they are


class SpoolRefused(Exception):
    """A file of the spool can't be used; the text says why, as in "is damaged"."""


@dataclass(frozen=True)
class _Image:
    """One image, without its tensors."""

    inputs: _Names
    sample: Any = None  # JSON of a `Sample[None]`, whose fields are those of the writing version
    sample_inputs: _Names = field(default_factory=dict)
    suspicion: Any = None  # JSON of a `Suspicion`


@dataclass(frozen=True)
class _Header:
    """A job without its tensors."""

    service: str  # its version
    id: str
    caller: str
    route: str
    created: float
    claim: IdempotencyClaim
    request: str
    images: tuple[_Image, ...]
    origin: str = ""
    webhook: str | None = None


_HEADER = TypeAdapter(_Header)
_SAMPLE = TypeAdapter(Sample[None])
_SUSPICION = TypeAdapter(Suspicion)


def encode(job: SpooledJob) -> bytes:
    """Return the bytes of the job's file."""
    files = _Files()
    tensors: dict[str, Array] = {}
    images = []
    for number, (inputs, snapshot) in enumerate(zip(job.inputs, job.images, strict=True)):
        image = _Image(files.add(inputs))
        if snapshot is not None:
            sample = snapshot.sample
            bare = replace(sample, latents=None, solver_state=(), inputs=NO_INPUTS)
            text = _SAMPLE.dump_python(bare, mode="json")
            known = _SUSPICION.dump_python(snapshot.suspicion, mode="json")
            image = _Image(image.inputs, text, files.add(sample.inputs), known)
            tensors |= _tensors(number, snapshot)
        images.append(image)
    header = _Header(
        __version__,
        *(job.id, job.caller, job.route, job.created, job.claim, job.request),
        tuple(images),
        job.origin,
        job.webhook,
    )
    tensors |= files.tensors
    text = _HEADER.dump_json(header).decode()
    metadata = {_VERSION_KEY: VERSION, _JOB_KEY: text, _CHECKSUM_KEY: checksum(text, tensors)}
    data: bytes = save(tensors, metadata)
    return data


def decode(data: bytes) -> SpooledJob:
    """Return the job of a file, without a snapshot that this version does not understand.

    Raises `SpoolRefused` if it is not one, or not what was written.
    """
    metadata = _metadata(data)
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise SpoolRefused("is no file of this service")
    if version != VERSION:
        raise SpoolRefused(f"has the format {version}, and this version reads {VERSION}")
    try:
        tensors: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, TypeError, KeyError):
        raise SpoolRefused("is damaged: its tensors can't be read") from None
    text = metadata.get(_JOB_KEY, "")
    if metadata.get(_CHECKSUM_KEY) != checksum(text, tensors):
        raise SpoolRefused("is damaged: it is not what was written")
    try:
        header = _HEADER.validate_json(text, strict=True)
        return SpooledJob(
            *(header.id, header.caller, header.route, header.created, header.claim),
            origin=header.origin,
            webhook=header.webhook,
            request=header.request,
            inputs=tuple(_inputs(image.inputs, tensors) for image in header.images),
            images=tuple(
                _snapshot(number, image, tensors) for number, image in enumerate(header.images)
            ),
        )
    except (ValidationError, InvalidRequest, KeyError, TypeError, ValueError):
        raise SpoolRefused("holds a job that this version does not understand") from None


class _Files:
    """The input files of a job's images, each distinct one once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self._names: dict[bytes, str] = {}

    def add(self, inputs: ImageInputs) -> _Names:
        """Return the names of the tensors that hold the inputs."""
        names = {}
        for entry in fields(inputs):
            content = getattr(inputs, entry.name)
            if content is not None:
                name = self._names.setdefault(content, f"inputs.{len(self._names)}.{entry.name}")
                self.tensors[name] = np.frombuffer(content, np.uint8)
                names[entry.name] = name
        return names


def _tensors(number: int, snapshot: ImageSnapshot) -> dict[str, Array]:
    """Return what is large of a snapshot, by the names of an image with that number."""
    sample = snapshot.sample
    tensors = {f"{number}.solver.{i}": state for i, state in enumerate(sample.solver_state)}
    if sample.latents is not None:
        tensors[f"{number}.latents"] = sample.latents
    if snapshot.png is not None:
        tensors[f"{number}.png"] = np.frombuffer(snapshot.png, np.uint8)
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _snapshot(number: int, image: _Image, tensors: Mapping[str, Array]) -> ImageSnapshot | None:
    if image.sample is None:
        return None
    try:
        bare: Sample[Any] = _SAMPLE.validate_json(json.dumps(image.sample), strict=True)
        suspicion = _SUSPICION.validate_json(json.dumps(image.suspicion), strict=True)
    except (ValidationError, InvalidRequest, ValueError):  # of another version of the service
        return None
    states: list[Array] = []
    while (state := tensors.get(f"{number}.solver.{len(states)}")) is not None:
        states.append(state)
    sample = replace(
        bare,
        latents=tensors.get(f"{number}.latents"),
        solver_state=tuple(states),
        inputs=_inputs(image.sample_inputs, tensors),
    )
    png = tensors.get(f"{number}.png")
    return ImageSnapshot(sample, None if png is None else png.tobytes(), suspicion)


def _inputs(names: _Names, tensors: Mapping[str, Array]) -> ImageInputs:
    return ImageInputs(**{field: tensors[name].tobytes() for field, name in names.items()})


def _metadata(data: bytes) -> Mapping[str, str]:
    """Return the metadata in a file's header. Raises `SpoolRefused`."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        metadata = header.get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        raise SpoolRefused("is damaged, or no safetensors file") from None
    if not isinstance(metadata, dict):
        raise SpoolRefused("is damaged, or no safetensors file")
    return metadata


def checksum(text: str, tensors: Mapping[str, Array]) -> str:
    """Return a digest of all that a file holds."""
    digest = sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
