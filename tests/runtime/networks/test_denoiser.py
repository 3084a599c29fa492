"""The UNet's wrapper with a network whose output is known."""

import pytest
import torch

from serve_app.runtime.networks.conditioning import Conditioning, RowConditioning
from serve_app.runtime.networks.denoiser import DenoiserInput, UNetDenoiser


class Echo:
    """A network that predicts its pooled condition's number everywhere, and remembers its input."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []
        self.times: list[torch.Tensor] = []

    def __call__(self, rows, times, *, encoder_hidden_states, added_cond_kwargs, return_dict):  # type: ignore[no-untyped-def]
        self.rows.append(rows)
        self.times.append(times)
        return (added_cond_kwargs["text_embeds"][:, :1, None, None] * torch.ones_like(rows),)


def told(number: float) -> RowConditioning:
    return RowConditioning(torch.zeros(77, 8), torch.full((4,), number), torch.zeros(6))


def guided(towards: float, away: float | None, scale: float = 1.0) -> Conditioning:
    return Conditioning(told(towards), None if away is None else told(away), scale)


X = torch.ones(3, 4, 8, 8)
POINTS = [
    DenoiserInput(2.0, 900.0, guided(3.0, 1.0, scale=5.0)),
    DenoiserInput(1.0, 500.0, guided(2.0, None)),
    DenoiserInput(0.5, 100.0, guided(1.0, 0.0, scale=2.0)),
]


def test_each_row_has_its_own_guidance_level_and_time() -> None:
    network = Echo()
    denoised = UNetDenoiser(network, "epsilon", torch.float32)(X, POINTS, 8)
    noise = [1.0 + 5.0 * 2.0, 2.0, 2.0]
    levels = [2.0, 1.0, 0.5]
    for one, level, predicted in zip(denoised, levels, noise, strict=True):
        assert torch.allclose(one, torch.ones_like(one) - level * predicted)
    assert network.rows[0].shape == (8, 4, 8, 8)
    assert network.times[0].tolist() == [900, 900, 500, 100, 100, 0, 0, 0]
    scaled = [row.mean().item() for row in network.rows[0]]
    expected = [5**-0.5] * 2 + [2**-0.5] + [1.25**-0.5] * 2 + [0, 0, 0]
    assert scaled == pytest.approx(expected)


def test_velocity_prediction_is_turned_into_the_picture() -> None:
    denoised = UNetDenoiser(Echo(), "v_prediction", torch.float32)(X[:1], POINTS[1:2], 2)
    assert torch.allclose(denoised, torch.full_like(denoised, 2 * -(0.5**0.5) + 0.5))


def test_rows_beyond_the_lanes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 rows do not fit in 4 lanes"):
        UNetDenoiser(Echo(), "epsilon", torch.float32)(X, POINTS, 4)


def test_conditions_are_laid_side_by_side_anew_when_the_company_changes() -> None:
    denoiser = UNetDenoiser(Echo(), "epsilon", torch.float32)
    together = denoiser(X, POINTS, 8)
    alone = denoiser(X[:1], POINTS[1:2], 8)
    again = denoiser(X, POINTS, 8)
    assert torch.equal(together, again)
    assert torch.equal(alone[0], together[1])


def test_what_a_batch_is_told_comes_to_where_its_latents_are() -> None:
    """The meta device has shapes and no numbers; nothing else would meet there what is on it."""
    denoised = UNetDenoiser(Echo(), "epsilon", torch.float32)(X.to("meta"), POINTS, 8)
    assert denoised.device.type == "meta"
    assert {point.conditioning.positive.embeds.device.type for point in POINTS} == {"cpu"}
