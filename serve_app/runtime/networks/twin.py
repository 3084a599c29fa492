"""A second module over the same tensors, for code that must not change the first one."""

import copy
from typing import Any

from torch import nn


def twin(module: nn.Module) -> Any:
    """Return a copy of a module that shares its parameters and buffers.

    Parameters that move to another device move for both, since they are the same objects.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo=dict(shared))
