"""Read the weights that a plan names: scaled where they are quantized, cast, and checked.

Every tensor is read alone, so that no more than one is in memory twice.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from serve_app.core.errors import CheckpointError
from serve_app.runtime.checkpoints.safetensors_header import StoredTensor
from serve_app.runtime.checkpoints.tensor_layout import THIRDS, View
from serve_app.runtime.checkpoints.weight_plan import PlannedTensor, WeightPlan
from serve_app.runtime.networks.finite import check_finite, is_finite


def read_weights(plan: WeightPlan, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors of a network by their names in its module.

    Raises `WeightsNotFinite` for NaN and infinite values, and `CheckpointError` for a file that
    can't be read, or values that are too large for `dtype`.
    """
    tensors = {}
    with OpenFiles() as files:
        for name, planned in plan.tensors.items():
            tensors[name] = _read(planned, files, dtype)
    return tensors


class OpenFiles:
    """Weight files, each opened once."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files: dict[Path, Any] = {}  # safe_open

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read(self, stored: StoredTensor) -> torch.Tensor:
        """Return a tensor as it is stored. Raises `CheckpointError` when that fails."""
        try:
            if stored.file not in self._files:
                opened = self._stack.enter_context(safe_open(stored.file, "pt"))
                self._files[stored.file] = opened
            tensor: torch.Tensor = self._files[stored.file].get_tensor(stored.name)
        except (OSError, SafetensorError) as error:
            problem = " ".join(str(error).split())
            raise CheckpointError(f"holds an unreadable {stored.label}: {problem}") from None
        return tensor


def _read(planned: PlannedTensor, files: OpenFiles, dtype: torch.dtype) -> torch.Tensor:
    stored, raw = planned.stored, files.read(planned.stored)
    values = raw
    if planned.scale is not None:  # in fp32, in which the scale was computed
        scale = files.read(planned.scale)
        check_finite(scale, planned.scale.name, planned.scale.label)
        values = raw.float() * scale.float().reshape(-1, *[1] * (raw.dim() - 1))
    tensor = _viewed(values, planned.view).to(dtype)
    if not is_finite(tensor):
        check_finite(raw, stored.name, stored.label)
        largest = float(values.float().abs().max())
        raise CheckpointError(
            f"holds {stored.label}, whose tensor {stored.name} has values up to {largest:.3g}, "
            f"too large for {str(dtype).removeprefix('torch.')}",
            remedy="Set MODEL_PRECISION=bf16 or fp32",
        )
    return tensor


def _viewed(values: torch.Tensor, view: View) -> torch.Tensor:
    """Return the module's tensor, with memory of its own where it is a part."""
    if view is View.TRANSPOSED:
        return values.T.contiguous()
    if view is View.FLATTENED:
        return values.flatten(1)
    if view in THIRDS:
        return values.chunk(3)[THIRDS.index(view)].clone()
    return values
