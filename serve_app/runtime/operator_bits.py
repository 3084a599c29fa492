"""`OperatorBits`: which operators of a network change a row's bits with the number of rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass(slots=True)
class OperatorCalls:
    """The calls of one kind of operator."""

    calls: int = 0
    changed: dict[int, int] = field(default_factory=dict)  # of these, by the number of rows


class OperatorBits(TorchFunctionMode):
    """Runs each operator of a batch again on its first rows alone, and compares the bits.

    Every call gets the inputs that it has in the whole batch, so that a difference is its own.
    Active within `with`, as any mode of torch.
    """

    def __init__(self, rows: int, counts: Sequence[int]) -> None:
        """Compare batches of `rows` rows with `counts` of them."""
        super().__init__()
        self.operators: dict[str, OperatorCalls] = {}
        self._rows, self._counts = rows, counts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return what the operator returns."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (name := _name(func, args)) and len(args[0]) == self._rows:
            operator = self.operators.setdefault(name, OperatorCalls())
            operator.calls += 1
            inputs = 3 if name == _ATTENTION else 1
            for count in self._counts:
                # Views, whose strides and alignment are those of a smaller batch: kernels choose by
                # these too.
                few = func(*(x[:count] for x in args[:inputs]), *args[inputs:], **kwargs)
                changed = not torch.equal(few, result[:count])
                operator.changed[count] = operator.changed.get(count, 0) + changed
        return result


_ATTENTION = "attention"
_NAMES: dict[Any, str] = {
    functional.scaled_dot_product_attention: _ATTENTION,
    functional.group_norm: "group norm",
    functional.layer_norm: "layer norm",
    functional.silu: "SiLU",
    functional.gelu: "GELU",
}


def _name(func: Callable[..., Any], args: tuple[Any, ...]) -> str | None:
    """Return the kind of an operator whose first arguments have a row for each of the batch's."""
    if func is functional.linear:
        return "linear, one line a row" if args[0].dim() == 2 else "linear, many lines a row"
    if func is torch.ops.mkldnn._linear_pointwise:  # prepacked: see `networks.prepacked`
        return "linear, many lines a row"
    if func in (functional.conv2d, torch.ops.mkldnn._convolution_pointwise):
        height, width = args[1].shape[-2:]
        return f"convolution {height}x{width}"
    return _NAMES.get(func)
