"""How many images fit on a device, and what is given up so that one of them does.

Knows no device and no networks: whether a set-up holds is tried by whoever is handed in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class MemorySaving(StrEnum):
    """What can be given up for room, in the order in which it is: the cheapest in time first."""

    VAE_TILES = "vae-tiles"  # pictures pass the VAE in tiles, one after another
    SLICED_ATTENTION = "sliced-attention"  # a few heads at a time
    TEXT_ON_CPU = "text-on-cpu"  # text encoders are on the device only while they work
    UNET_ON_CPU = "unet-on-cpu"  # the UNet's layers are on the device only while they work


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A set-up: how many guided images step together, and the rungs that are taken for it."""

    images: int
    savings: tuple[MemorySaving, ...] = ()

    def __str__(self) -> str:
        images = "1 image" if self.images == 1 else f"{self.images} images"
        return ", ".join([f"{images} at a time", *self.savings])


def first_plan_that_fits(
    max_images: int,
    savings: Sequence[MemorySaving],
    fits: Callable[[MemoryPlan], bool],
    previous_plan: MemoryPlan | None = None,
) -> MemoryPlan | None:
    """The first set-up that holds: `asked` images, then fewer, then one with rung after rung.

    Fewer images come before any rung: a rung costs every image its time, and a smaller batch on a
    small device costs little. Numbers go down by powers of two, as lanes do. None when nothing
    holds. Rungs add up: each set-up has those of the one before. What was fitted `before` begins
    there: other company must not give a model another numeric profile.
    """
    down = [MemoryPlan(images) for images in halvings(max_images)]
    up = [MemoryPlan(1, tuple(savings[: taken + 1])) for taken in range(len(savings))]
    setups = [*down, *up]
    begin = setups.index(previous_plan) if previous_plan in setups else 0
    return next((setup for setup in setups[begin:] if fits(setup)), None)


def shortfall(max_images: int, plan: MemoryPlan) -> str:
    """One sentence of what the device had no room for; "" when it had room for what was asked."""
    wish = MemoryPlan(max_images)
    return "" if plan == wish else f"too little memory for {wish}: now {plan}"


def shortfalls(max_images: int, plans: Mapping[str | None, MemoryPlan]) -> str:
    """The shortfalls of models in one line, each after the model's name where it has one."""
    said = {name: shortfall(max_images, fit) for name, fit in plans.items()}
    return "; ".join(f"{name}: {one}" if name else one for name, one in said.items() if one)


def halvings(images: int) -> tuple[int, ...]:
    """The number itself, and every power of two below it, down to 1."""
    return images, *(1 << power for power in reversed(range((images - 1).bit_length())))
