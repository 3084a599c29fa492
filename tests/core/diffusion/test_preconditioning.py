"""What a network predicts is turned into the picture: by numbers whose answer is known."""

from math import sqrt

import pytest

from serve_app.core.diffusion.preconditioning import NetworkOutput, Preconditioning

PICTURE, NOISE = 0.7, -1.3


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.0, 14.6, 80.0])
def test_a_network_that_knows_the_noise_gives_the_picture(sigma: float) -> None:
    x = PICTURE + sigma * NOISE
    assert Preconditioning().denoised(x, sigma, NOISE) == pytest.approx(PICTURE)


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.0, 14.6, 80.0])
def test_a_network_that_knows_the_velocity_gives_the_picture(sigma: float) -> None:
    x = PICTURE + sigma * NOISE
    velocity = (NOISE - sigma * PICTURE) / sqrt(1 + sigma**2)  # Salimans & Ho 2022, section 4
    denoised = Preconditioning(NetworkOutput.VELOCITY).denoised(x, sigma, velocity)
    assert denoised == pytest.approx(PICTURE)


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.0, 14.6, 80.0])
def test_the_target_of_edm_training_gives_the_picture(sigma: float) -> None:
    x, data = PICTURE + sigma * NOISE, 0.5
    c_skip = data**2 / (sigma**2 + data**2)  # Karras et al. 2022, table 1
    c_out = sigma * data / sqrt(sigma**2 + data**2)
    edm = Preconditioning(NetworkOutput.EDM, data)
    assert edm.denoised(x, sigma, (PICTURE - c_skip * x) / c_out) == pytest.approx(PICTURE)


def test_the_networks_input_has_unit_variance() -> None:
    assert Preconditioning().scaled_input(1.0, 3.0) == pytest.approx(1 / sqrt(10))
    edm = Preconditioning(NetworkOutput.EDM, 0.5)
    assert edm.scaled_input(1.0, 3.0) == pytest.approx(1 / sqrt(9.25))
