"""A card that is simulated on the CPU."""

import pytest
import torch

from tests.support.simulated_card import SimulatedCard


@pytest.fixture
def card() -> SimulatedCard:
    return SimulatedCard(torch.device("cpu"), "cpu", torch.float32, torch.float32, "sdpa", 2)
