"""How many images step together, and in which numbers of rows, on networks with known answers."""

from collections.abc import Sequence

import pytest
import torch

from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import OperatorError
from serve_app.runtime.extensions.extension_set import ExtensionSet
from serve_app.runtime.fit_lanes import fit_lanes
from serve_app.runtime.networks.conditioning import Conditioner
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.parts import Parts
from tests.support.analytic_model import (
    CHECKPOINT,
    CPU,
    BlankTextEncoders,
    ConstantDenoiser,
    MeanPixels,
)


class CountingDenoiser(ConstantDenoiser):
    """A result has other bits for each number that `bits` gives a number of lanes."""

    def __init__(self, bits: dict[int, int]) -> None:
        super().__init__()
        self.bits = bits

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        return x + self.bits.get(lanes, 0)


def profile_of(lanes: int) -> NumericProfile:
    return NumericProfile(Stage.BASE, "cpu", "float32", "float32", "none", lanes, (), 1, "1", "m")


def fitted(
    denoiser: ConstantDenoiser, images: int = 8, *, strict: bool = True
) -> tuple[int, int, tuple[int, ...]]:
    """Return the images, the profile's lanes, and the numbers of lanes."""
    parts = Parts(
        Conditioner(BlankTextEncoders(), CHECKPOINT), denoiser, MeanPixels(), ExtensionSet()
    )
    count, profile, lanes = fit_lanes(parts, CPU, profile_of, images, strict=strict)
    return count, profile.lanes, lanes.counts


def test_all_numbers_of_rows_with_the_same_bits_are_kept() -> None:
    assert fitted(ConstantDenoiser()) == (8, 16, (1, 2, 4, 6, 8, 12, 16))
    assert fitted(CountingDenoiser({1: 1, 12: 2})) == (8, 16, (2, 4, 6, 8, 16))
    assert fitted(ConstantDenoiser(), strict=False) == (8, 0, ())


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ({16: 1}, (4, 8, (1, 2, 4, 6, 8))),
        ({16: 1, 8: 2, 6: 2}, (2, 4, (1, 2, 4))),
        ({16: 1, 12: 1}, (4, 8, (1, 2, 4, 6, 8))),
        ({16: 1, 1: 3}, (4, 8, (2, 4, 6, 8))),
        (dict.fromkeys((2, 4, 6, 12), 1), (2, 4, (2, 4))),
    ],
)
def test_fewer_images_step_together_where_so_many_rows_have_bits_of_their_own(
    bits: dict[int, int], expected: tuple[int, int, tuple[int, ...]]
) -> None:
    assert fitted(CountingDenoiser(bits)) == expected


def test_every_step_is_padded_where_no_two_numbers_of_rows_have_the_same_bits() -> None:
    every = CountingDenoiser({lanes: lanes for lanes in range(17)})
    assert fitted(every) == (8, 16, (16,))
    assert fitted(every, images=1) == (1, 2, (2,))
    assert fitted(every, images=3) == (3, 8, (8,))


def test_a_machine_that_treats_slots_differently_is_refused() -> None:
    class Slots(ConstantDenoiser):
        def __call__(
            self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
        ) -> torch.Tensor:
            return x * torch.arange(1.0, len(x) + 1).view(-1, 1, 1, 1)

    with pytest.raises(OperatorError, match="strict can't be kept"):
        fitted(Slots())
