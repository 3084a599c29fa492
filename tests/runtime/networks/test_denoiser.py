"""The UNet denoiser, over a network with known output."""

from math import log

import pytest
import torch
from diffusers import EDMEulerScheduler

from serve_app.core.diffusion.preconditioning import NetworkOutput, Preconditioning
from serve_app.runtime.networks.conditioning import Conditioning, RowConditioning
from serve_app.runtime.networks.denoiser import DenoiserInput, UNetDenoiser


class Echo:
    """A network that predicts its pooled embedding's value everywhere, and records its inputs."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []
        self.timesteps: list[torch.Tensor] = []

    def __call__(
        self,
        rows: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor],
        return_dict: bool,
    ) -> tuple[torch.Tensor]:
        self.rows.append(rows)
        self.timesteps.append(timesteps)
        return (added_cond_kwargs["text_embeds"][:, :1, None, None] * torch.ones_like(rows),)


def row(value: float) -> RowConditioning:
    return RowConditioning(torch.zeros(77, 8), torch.full((4,), value), torch.zeros(6))


def conditioning(positive: float, negative: float | None, scale: float = 1.0) -> Conditioning:
    return Conditioning(row(positive), None if negative is None else row(negative), scale)


NOISE = Preconditioning()
VELOCITY = Preconditioning(NetworkOutput.VELOCITY)
X = torch.ones(3, 4, 8, 8)
INPUTS = [
    DenoiserInput(2.0, 900.0, conditioning(3.0, 1.0, scale=5.0)),
    DenoiserInput(1.0, 500.0, conditioning(2.0, None)),
    DenoiserInput(0.5, 100.0, conditioning(1.0, 0.0, scale=2.0)),
]


def test_each_row_has_its_own_guidance_sigma_and_timestep() -> None:
    network = Echo()
    denoised = UNetDenoiser(network, NOISE, torch.float32)(X, INPUTS, 8)
    noise = [1.0 + 5.0 * 2.0, 2.0, 2.0]
    sigmas = [2.0, 1.0, 0.5]
    for sample, sigma, predicted in zip(denoised, sigmas, noise, strict=True):
        assert torch.allclose(sample, torch.ones_like(sample) - sigma * predicted)
    assert network.rows[0].shape == (8, 4, 8, 8)
    assert network.timesteps[0].tolist() == [900, 900, 500, 100, 100, 0, 0, 0]
    scaled = [scaled_row.mean().item() for scaled_row in network.rows[0]]
    expected = [5**-0.5] * 2 + [2**-0.5] + [1.25**-0.5] * 2 + [0, 0, 0]
    assert scaled == pytest.approx(expected)


def test_v_prediction_is_converted_to_denoised_latents() -> None:
    denoised = UNetDenoiser(Echo(), VELOCITY, torch.float32)(X[:1], INPUTS[1:2], 2)
    assert torch.allclose(denoised, torch.full_like(denoised, 2 * -(0.5**0.5) + 0.5))


def test_an_edm_network_has_the_input_and_output_of_diffusers() -> None:
    scheduler = EDMEulerScheduler(sigma_data=0.5)
    sigma = torch.tensor(2.0)
    network = Echo()
    edm = Preconditioning(NetworkOutput.EDM, sigma_data=0.5)
    inputs = [DenoiserInput(2.0, 0.25 * log(2), conditioning(3.0, None))]
    denoised = UNetDenoiser(network, edm, torch.float32)(X[:1], inputs, 1)
    assert torch.equal(network.rows[0], scheduler.precondition_inputs(X[:1], sigma))
    theirs = scheduler.precondition_outputs(X[:1], torch.full_like(X[:1], 3.0), sigma)
    assert torch.allclose(denoised, theirs, rtol=1e-6)


def test_rows_beyond_the_lanes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 rows do not fit in 4 lanes"):
        UNetDenoiser(Echo(), NOISE, torch.float32)(X, INPUTS, 4)


def test_conditioning_is_gathered_again_when_the_batch_changes() -> None:
    denoiser = UNetDenoiser(Echo(), NOISE, torch.float32)
    together = denoiser(X, INPUTS, 8)
    alone = denoiser(X[:1], INPUTS[1:2], 8)
    again = denoiser(X, INPUTS, 8)
    assert torch.equal(together, again)
    assert torch.equal(alone[0], together[1])


def test_conditioning_moves_to_the_device_of_the_latents() -> None:
    """The meta device has shapes and no values; an operation across devices would raise."""
    denoised = UNetDenoiser(Echo(), NOISE, torch.float32)(X.to("meta"), INPUTS, 8)
    assert denoised.device.type == "meta"
    assert {i.conditioning.positive.embeds.device.type for i in INPUTS} == {"cpu"}
