"""Check every value of the weights: `doctor --deep`. It reads all files, a tensor at a time."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from serve_app.config.checkpoints import safety_checker_download
from serve_app.core.errors import CheckpointError
from serve_app.doctor.checks.gpu_probe import gib
from serve_app.doctor.checks.models import FoundModels, download_command
from serve_app.doctor.finding import Finding, edit_command, fail, fine, problem_of
from serve_app.runtime.checkpoints.checkpoint import check_safety_checker, weight_plans
from serve_app.runtime.checkpoints.safetensors_header import StoredTensor, read_header
from serve_app.runtime.networks.finite import check_finite
from serve_app.runtime.networks.weights import OpenFiles

OnBytes = Callable[[int, int], object]  # bytes read so far, and in all


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Tensors that are read together, and what repairs them."""

    path: Path  # as the settings name it
    tensors: Sequence[StoredTensor]
    fix: str


def weight_sources(
    found: FoundModels, models_file: Path | None, safety_checker: Path | None
) -> Iterator[WeightSource]:
    """Yield all that the service would read: checkpoints, extensions and the safety checker."""
    for checkpoint in found.checkpoints:
        tensors = [t for plan in weight_plans(checkpoint).values() for t in plan.stored]
        path = checkpoint.path
        if checkpoint.file:  # to be compared with what its source says
            fix = f"sha256sum {shlex.quote(str(path))}"
        else:
            fix = download_command(path, checkpoint.stage)
        yield WeightSource(path, tensors, fix)
    for extension in found.extensions:
        path = extension.file.path
        tensors = list(read_header(path, path.name).tensors.values())
        yield WeightSource(path, tensors, edit_command(models_file or path))
    if safety_checker:
        tensors = check_safety_checker(safety_checker).plan.stored
        yield WeightSource(safety_checker, tensors, safety_checker_download(safety_checker))


def check_values(sources: Iterable[WeightSource], on_bytes: OnBytes) -> Iterator[Finding]:
    """Check that all weights are readable and finite; yield a finding for each damaged source.

    `on_bytes` is called after each tensor.
    """
    sources = list(sources)
    total = sum(tensor.num_bytes for source in sources for tensor in source.tensors)
    done, is_sound = 0, True
    for source in sources:
        try:
            for tensor, values in _read(source.tensors):
                check_finite(values, tensor.name, tensor.label)
                done += tensor.num_bytes
                on_bytes(done, total)
        except CheckpointError as error:
            is_sound = False
            yield fail("weights", problem_of(error.about(str(source.path))), source.fix)
    if is_sound:
        yield fine("weights", f"all values are finite: {gib(total)} read")


def _read(tensors: Iterable[StoredTensor]) -> Iterator[tuple[StoredTensor, torch.Tensor]]:
    with OpenFiles() as files:
        for tensor in tensors:
            yield tensor, files.read(tensor)
