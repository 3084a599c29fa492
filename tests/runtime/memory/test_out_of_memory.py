"""By what a lack of memory is recognized."""

import pytest
import torch

from serve_app.runtime.memory.device import is_out_of_memory


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (torch.OutOfMemoryError("anything"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.99 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognized_by_type_or_message(error: Exception, is_lack: bool) -> None:
    assert is_out_of_memory(error) is is_lack


def test_a_real_failed_allocation_is_recognized_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
