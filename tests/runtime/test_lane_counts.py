"""Which numbers of rows a step may have, found out on networks whose answers are known."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch

from serve_app.core.diffusion.extensions import ExtensionKey
from serve_app.runtime.lane_counts import (
    MAX_ANSWERS,
    LaneChoice,
    LaneCounts,
    LaneKey,
    lane_counts_for,
    made_up_batch,
)
from serve_app.runtime.networks.conditioning import RowConditioning
from serve_app.runtime.networks.denoiser import DenoiserInput

KEY = LaneKey((8, 8), 1, ())
WIDE = LaneKey((8, 12), 1, ())
LORA = LaneKey((8, 8), 1, (ExtensionKey("lora", "ink"),))
ROW = RowConditioning(torch.zeros(77, 8), torch.zeros(4), torch.zeros(6))


class PickyDenoiser:
    """Computes differently with some numbers of lanes."""

    def __init__(self, *picky: int) -> None:
        self.picky = picky
        self.calls: list[tuple[int, int]] = []  # different rows, and lanes

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        assert len(x) == len(inputs) == lanes
        assert all(i.conditioning.negative is None for i in inputs)
        self.calls.append((len({i.sigma for i in inputs}), lanes))
        return x.nextafter(x + 1) if lanes in self.picky else x

    def forget(self) -> None:
        pass


class SlotDenoiser(PickyDenoiser):
    """Computes differently in some slots."""

    def __init__(self, slots: tuple[int, ...]) -> None:
        super().__init__()
        self.slots = slots

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        slots = torch.ones(len(x), 1, 1, 1)
        slots[[slot for slot in self.slots if slot < len(x)]] = 2
        return super().__call__(x, inputs, lanes) * slots


class NanDenoiser(PickyDenoiser):
    """Computes nothing that is finite."""

    def __call__(
        self, x: torch.Tensor, inputs: Sequence[DenoiserInput], lanes: int
    ) -> torch.Tensor:
        return super().__call__(x, inputs, lanes) * torch.nan


batch = partial(made_up_batch, ROW, (8, 8), torch.device("cpu"))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (1, (1, 2)),
        (2, (1, 2, 4)),
        (3, (1, 2, 4, 6, 8)),
        (4, (1, 2, 4, 6, 8)),
        (8, (1, 2, 4, 6, 8, 12, 16)),
    ],
)
def test_numbers_of_rows_are_tried_up_to_room_for_every_image_guided(
    images: int, expected: tuple[int, ...]
) -> None:
    assert lane_counts_for(images, strict=True) == expected
    assert lane_counts_for(images, strict=False) == ()


@pytest.mark.parametrize(("rows", "lanes"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_a_step_has_the_fewest_lanes_that_hold_its_rows(rows: int, lanes: int) -> None:
    counts = LaneCounts(PickyDenoiser(), (1, 2, 4, 8))
    assert counts.choose(KEY, rows, batch).lanes == lanes


@pytest.mark.parametrize(("rows", "lanes"), [(1, 4), (2, 4), (3, 4), (5, 8)])
def test_a_number_of_lanes_that_changes_a_bit_is_passed_over(rows: int, lanes: int) -> None:
    counts = LaneCounts(PickyDenoiser(1, 2), (1, 2, 4, 8))
    assert counts.choose(KEY, rows, batch).lanes == lanes


@pytest.mark.parametrize("slots", [(7,), (1, 3, 5, 7), (0, 3, 4, 7), (1,)])
def test_a_row_must_have_the_same_bits_in_every_slot_of_the_most_lanes(
    slots: tuple[int, ...],
) -> None:
    assert LaneCounts(SlotDenoiser(slots), (2, 4, 8)).choose(KEY, 2, batch).lanes == 8


def test_different_rows_are_compared_once_for_each_key() -> None:
    denoiser = PickyDenoiser(2)
    counts = LaneCounts(denoiser, (2, 4, 8))
    assert counts.known_lanes(KEY, 2) is None
    assert counts.choose(KEY, 2, batch) == LaneChoice(4, is_new=True)
    assert denoiser.calls == [(2, 2), (2, 2), (2, 8), (4, 4), (4, 4), (4, 8)]
    assert counts.known_lanes(KEY, 2) is not None
    assert counts.choose(KEY, 2, batch) == LaneChoice(4)
    assert counts.choose(KEY, 3, batch) == LaneChoice(4)
    assert counts.choose(KEY, 6, batch) == LaneChoice(8)
    assert len(denoiser.calls) == 6
    assert counts.known_lanes(WIDE, 3) is None
    assert counts.known_lanes(WIDE, 6) is not None
    assert counts.choose(WIDE, 3, batch) == LaneChoice(4, is_new=True)


def test_one_number_of_lanes_needs_no_comparison() -> None:
    denoiser = PickyDenoiser(8)
    counts = LaneCounts(denoiser, (8,))
    assert counts.known_lanes(KEY, 2) is not None
    assert counts.choose(KEY, 2, batch) == LaneChoice(8)
    assert not denoiser.calls


def test_what_is_not_finite_says_nothing_of_the_next_start() -> None:
    answers: dict[str, bool] = {}
    counts = LaneCounts(NanDenoiser(), (2, 8), on_answer=answers.__setitem__)
    assert counts.choose(KEY, 2, batch) == LaneChoice(8, is_new=True)
    assert counts.choose(KEY, 2, batch) == LaneChoice(8)
    assert not answers


def test_answers_that_last_are_reported_and_known_ones_need_no_comparison() -> None:
    answers: dict[str, bool] = {}
    counts = LaneCounts(PickyDenoiser(2), (2, 4, 8), on_answer=answers.__setitem__)
    counts.choose(KEY, 2, batch)
    counts.choose(LORA, 2, batch)  # whose file may be another one at the next start
    assert answers == {KEY.name(2): False, KEY.name(4): True}
    denoiser = PickyDenoiser(2)
    again = LaneCounts(denoiser, (2, 4, 8), known=answers)
    assert again.choose(KEY, 2, batch) == LaneChoice(4)
    assert not denoiser.calls


def test_answers_for_ever_new_keys_take_bounded_memory() -> None:
    counts = LaneCounts(PickyDenoiser(), (2, 4))
    keys = [LaneKey((8, 8 + width), 1, ()) for width in range(MAX_ANSWERS + 1)]
    for key in keys:
        counts.choose(key, 2, batch)
    assert counts.known_lanes(keys[-1], 2) is not None
    assert counts.known_lanes(keys[0], 2) is None


def test_made_up_rows_are_shaped_like_a_row_s_and_come_again_shifted() -> None:
    like = RowConditioning(torch.zeros(154, 8, dtype=torch.bfloat16), torch.zeros(4), torch.ones(5))
    x, inputs = made_up_batch(like, (16, 24), torch.device("cpu"), rows=5, different=2)
    assert x.shape == (5, 4, 16, 24)
    assert torch.equal(x[0], x[4])
    assert not torch.equal(x[0], x[1])
    assert inputs[0] is inputs[3] is inputs[4]
    assert inputs[1] is inputs[2]
    assert inputs[0].sigma != inputs[1].sigma
    for sample in inputs:
        row = sample.conditioning.positive
        assert (row.embeds.shape, row.embeds.dtype) == ((154, 8), torch.bfloat16)
        assert torch.equal(row.time_ids, like.time_ids)
        assert row.embeds.any()
