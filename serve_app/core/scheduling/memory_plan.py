"""How many images step together on a device, and which savings make room for one of them.

No devices and no networks: the caller passes in what tries a plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class MemorySaving(StrEnum):
    """What can be given up for memory, the cheapest in time first."""

    VAE_TILES = "vae-tiles"  # images pass the VAE in tiles, one after another
    SLICED_ATTENTION = "sliced-attention"  # a few heads at a time
    TEXT_ON_CPU = "text-on-cpu"  # text encoders are on the device only while they work
    UNET_ON_CPU = "unet-on-cpu"  # the UNet's layers are on the device only while they work


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How many guided images step together, and the savings that are applied for it."""

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
    """Return the first plan that fits, or None: fewer and fewer images, then more and more savings.

    Fewer images come before any saving: a saving costs every image time, and a smaller batch on a
    small device costs little. The numbers of images are `max_images` and the powers of two below
    it. Savings add up. Start at the plan used last time, so that a reload beside other models never
    changes the numeric profile.
    """
    fewer_images = [MemoryPlan(images) for images in halvings(max_images)]
    more_savings = [MemoryPlan(1, tuple(savings[: count + 1])) for count in range(len(savings))]
    plans = [*fewer_images, *more_savings]
    begin = plans.index(previous_plan) if previous_plan in plans else 0
    return next((plan for plan in plans[begin:] if fits(plan)), None)


def shortfall(max_images: int, plan: MemoryPlan) -> str:
    """Return a sentence on what did not fit on the device; "" if everything did."""
    wanted = MemoryPlan(max_images)
    return "" if plan == wanted else f"too little memory for {wanted}: now {plan}"


def shortfalls(max_images: int, plans: Mapping[str | None, MemoryPlan]) -> str:
    """Return the shortfalls of models in one line, each after the model's name if it has one."""
    sentences = {name: shortfall(max_images, plan) for name, plan in plans.items()}
    return "; ".join(
        f"{name}: {sentence}" if name else sentence
        for name, sentence in sentences.items()
        if sentence
    )


def halvings(images: int) -> tuple[int, ...]:
    """Return the number itself, and every power of two below it, down to 1."""
    return images, *(1 << power for power in reversed(range((images - 1).bit_length())))
