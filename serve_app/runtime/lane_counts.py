"""`LaneCounts`: the numbers of rows in which a model's UNet gives a sample the same bits.

Padding costs as much as an image. But kernels choose how to compute by the size of their input, so
that fewer rows may change a row's last bits: which numbers of rows do depends on the processor, the
precision and the image's size. So nothing is assumed: when images of a size are about to step for
the first time, the same rows are computed in both numbers, and compared bit by bit.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.core.diffusion.spec import LATENT_CHANNELS
from serve_app.runtime.live_sample import DeviceSample
from serve_app.runtime.networks.conditioning import Conditioning, RowConditioning
from serve_app.runtime.networks.denoiser import Denoiser, DenoiserInput
from serve_app.runtime.networks.finite import is_finite
from serve_app.runtime.networks.step_cache import StepFeatures

logger = logging.getLogger("aura.runtime")

Batch = tuple[torch.Tensor, Sequence[DenoiserInput]]  # latents (samples, 4, h/8, w/8), and the rest
# Prepares the network for a number of rows, each a sample of its own, and returns what it gets for
# them. Only so many as the second number are different: see `repeated_rows`.
MakeBatch = Callable[[int, int], Batch]

IsReady = Callable[[tuple[int, int], int], bool]  # latent height and width, and rows

MAX_ANSWERS = 1024  # that are remembered; the oldest are forgotten


def always_ready(latent_shape: tuple[int, int], rows: int) -> bool:
    """Return that nothing is compiled."""
    return True


def lane_counts_for(images: int, *, strict: bool) -> tuple[int, ...]:
    """Return the numbers of rows to try for `images` with guidance, ascending; none in fast mode.

    The most is a power of two: kernels split such a batch evenly over threads, so that all slots
    are computed alike. Those between are powers of two and one and a half times as many, so that
    padding is at most a quarter.
    """
    if not strict:
        return ()
    powers = [1 << power for power in range((2 * images - 1).bit_length() + 1)]
    between = [power + power // 2 for power in powers[2:-1]]
    return tuple(sorted([*powers, *between]))


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What is equal in batches for which the network computes alike, but for their rows."""

    latent_shape: tuple[int, int]  # height and width
    chunks: int  # length of the prompts, in pieces of 75 tokens
    extensions: tuple[ExtensionKey, ...]  # the active ones; their files may change
    shallow: bool = False  # whether the steps reuse deep features

    @classmethod
    def of(cls, sample: DeviceSample) -> Self:
        """Return the key of a sample that takes part."""
        extensions = tuple(ref.key for ref in sample.active_extensions)
        return cls(sample.spec.latent_shape, sample.chunks, extensions, sample.is_shallow)

    def name(self, lanes: int) -> str:
        """Return a name of these batches with a number of lanes."""
        height, width = self.latent_shape
        parts = [f"{lanes} lanes", f"{height}x{width}", f"{self.chunks} chunks"]
        parts += ["shallow"] if self.shallow else []
        return ", ".join([*parts, *map(str, self.extensions)])


@dataclass(frozen=True, slots=True)
class LaneChoice:
    """The rows of a UNet call, padding included."""

    lanes: int
    is_new: bool = False  # whether the network had to be run to find out


class LaneCounts:
    """Finds out which of some numbers of rows keep the bits that a sample has in the most of them.

    Only the engine's thread asks. Raises what the denoiser raises.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        counts: tuple[int, ...],
        *,
        known: Mapping[str, bool] | None = None,
        on_answer: Callable[[str, bool], None] | None = None,
        is_ready: IsReady = always_ready,
    ) -> None:
        """Begin with the `known` answers, by `LaneKey.name`.

        `on_answer` gets each new one that says the same after the next start. `is_ready` says
        whether a call needs no compilation first.
        """
        self.counts = counts  # ascending; every other one is compared with the last
        self._denoiser, self._on_answer, self._is_ready = denoiser, on_answer, is_ready
        self._answers = dict(list((known or {}).items())[-MAX_ANSWERS:])

    def known_lanes(self, key: LaneKey, rows: int) -> int | None:
        """Return the lanes of `choose` if it need not run the network, nor the step compile.

        None if that is not so.
        """
        for count in self.counts[:-1]:
            if count >= rows:
                answer = self._answers.get(key.name(count))
                if answer is not False:
                    return count if answer and self._is_ready(key.latent_shape, count) else None
        most = self.counts[-1] if self.counts else rows
        return most if self._is_ready(key.latent_shape, most) else None

    def choose(self, key: LaneKey, rows: int, make_batch: MakeBatch) -> LaneChoice:
        """Return the fewest lanes that hold so many rows and keep their bits.

        `make_batch` makes what the network is compared with, from samples of this key.
        """
        if (lanes := self.known_lanes(key, rows)) is not None:
            return LaneChoice(lanes)
        for count in self.counts[:-1]:
            if count < rows:
                continue
            name = key.name(count)
            answer = self._answers.get(name)
            if answer is None:
                answer, is_finite = self._keeps_bits(count, make_batch)
                self._remember(name, answer, lasts=is_finite and not key.extensions)
            if answer:
                return LaneChoice(count, is_new=True)
        return LaneChoice(self.counts[-1], is_new=True)

    def _remember(self, name: str, answer: bool, *, lasts: bool) -> None:
        logger.info("%s %s the bits of %d", name, "have" if answer else "lack", self.counts[-1])
        self._answers[name] = answer
        if len(self._answers) > MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        if lasts and self._on_answer is not None:
            self._on_answer(name, answer)

    def _keeps_bits(self, count: int, make_batch: MakeBatch) -> tuple[bool, bool]:
        """Return whether rows have the same bits in every slot of `count` lanes and of the most.

        Second, whether they are finite. If not, they say nothing of the next start: NaN is unequal
        to itself.
        """
        most = self.counts[-1]
        few, same = denoise_in_two_orders(self._denoiser, make_batch(count, count))
        # In the batch that repeats the rows, each also sits beside others.
        many = self._denoiser(*make_batch(most, count), most)
        return same and torch.equal(few[repeated_rows(most, count)], many), is_finite(many)


def denoise_in_two_orders(denoiser: Denoiser, batch: Batch) -> tuple[torch.Tensor, bool]:
    """Return what a batch of one-row samples is denoised to, (rows, 4, h/8, w/8).

    Second, whether each sample has the same bits in the next slot.
    """
    x, inputs = batch
    denoised = denoiser(x, inputs, len(inputs))
    rolled = denoiser(x.roll(1, 0), [*inputs[-1:], *inputs[:-1]], len(inputs))
    return denoised, torch.equal(denoised.roll(1, 0), rolled)


def repeated_rows(rows: int, different: int) -> list[int]:
    """Return which of the different rows sits in each slot: again and again, each time shifted."""
    return [(slot + slot // different) % different for slot in range(rows)]


def made_up_batch(
    like: RowConditioning,
    latent_shape: tuple[int, int],
    device: torch.device,
    rows: int,
    different: int,
    *,
    deep: torch.Tensor | None = None,
) -> Batch:
    """Return samples of one row whose inputs are shaped like a row's; see `MakeBatch`.

    Their latents are on the device, and nothing of a caller's is in them. With `deep`,
    (channels, h/8, w/8), they are at a shallow step, with features shaped like these.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    inputs = [
        DenoiserInput(
            sigma=1.0 + number,
            timestep=900.0 - number,
            conditioning=Conditioning(
                RowConditioning(
                    noise(*like.embeds.shape).to(like.embeds),
                    noise(*like.pooled.shape).to(like.pooled),
                    like.time_ids,
                ),
                None,
                1.0,
            ),
            features=None if deep is None else StepFeatures(noise(*deep.shape).to(deep)),
            shallow=deep is not None,
        )
        for number in range(different)
    ]
    x = noise(different, LATENT_CHANNELS, *latent_shape)
    numbers = repeated_rows(rows, different)
    return x[numbers].to(device), [inputs[number] for number in numbers]
