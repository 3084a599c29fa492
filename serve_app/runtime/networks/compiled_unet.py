"""`CompiledUNet`: torch.compile for the calls that most images make, and eager for all others.

Compiled and eager code differ in last bits, so one rule that every replica knows beforehand says
which call is which, whatever has been compiled so far: images of the model's aspect sizes with a
prompt of one chunk and no extension, in a power of two of rows, are compiled; the rest is eager.
Such a call that comes before its warm-up compiles on demand. The mode is part of the numeric
profile.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch

from serve_app.core.diffusion.prompt import ENCODED_TOKENS
from serve_app.runtime.networks.compiler import Compile
from serve_app.runtime.networks.kept_conditioning import (
    KeptConditioning,
    forget_conditioning,
    kept_by,
    stop_keeping,
)
from serve_app.runtime.networks.twin import twin

LatentShape = tuple[int, int]  # height and width


class CompiledUNet:
    """Two UNets over the same tensors behind the call of diffusers' UNet2DConditionModel.

    Extensions are attached to the eager one alone, so that they neither change nor recompile the
    other one.
    """

    def __init__(
        self,
        unet: Any,
        compile: Compile,
        latent_shapes: Collection[LatentShape],
        has_extensions: Callable[[], bool],
    ) -> None:
        """`compile` returns what runs instead of the copy of `unet` that it gets."""
        self._eager = unet
        forget_conditioning(unet)
        plain = twin(unet)
        stop_keeping(plain)  # code is compiled for each tensor that it compares with
        self._compiled = compile(plain)
        self._latent_shapes = frozenset(latent_shapes)
        self._has_extensions = has_extensions
        self._ready: set[tuple[LatentShape, int]] = set()

    def __call__(self, rows: torch.Tensor, *args: Any, **options: Any) -> Any:
        """Return what the UNet returns for these rows, (rows, 4, h/8, w/8)."""
        count, _, height, width = rows.shape
        tokens = options["encoder_hidden_states"].shape[1]
        if not self.compiles((height, width), tokens, count):
            return self._eager(rows, *args, **options)
        result = self._compiled(rows, *args, **options)
        self._ready.add(((height, width), count))
        return result

    def compiles(self, latent_shape: LatentShape, tokens: int, rows: int) -> bool:
        """Return whether a call with such inputs is compiled, as extensions are active now."""
        return (
            latent_shape in self._latent_shapes
            and tokens == ENCODED_TOKENS
            and rows.bit_count() == 1
            and not self._has_extensions()
        )

    @property
    def kept(self) -> KeptConditioning | None:
        """What the eager one keeps."""
        return kept_by(self._eager)

    @property
    def latent_shapes(self) -> frozenset[LatentShape]:
        """The height and width of the latents whose calls are compiled."""
        return self._latent_shapes

    def is_ready(self, latent_shape: LatentShape, rows: int) -> bool:
        """Return whether a call with so many rows takes no time for compiling."""
        is_lasting = latent_shape in self._latent_shapes and rows.bit_count() == 1
        return not is_lasting or (latent_shape, rows) in self._ready
