"""How like a picture its preview is."""

import numpy as np
import pytest

from serve_app.bench.previews import likeness, measure


def test_a_picture_is_like_its_own_mean_colours_and_unlike_its_negative() -> None:
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (4, 6, 3), np.uint8)
    picture = np.kron(small, np.ones((8, 8, 1), np.uint8))
    assert likeness(small, picture) == pytest.approx(1.0)
    assert likeness(255 - small, picture) == pytest.approx(-1.0)
    assert likeness(np.zeros_like(small), picture) == 0.0


@pytest.mark.long
def test_the_command_prints_likeness_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    measure(images=2, runs=3, threads=1)
    printed = capsys.readouterr().out
    assert "2 prompts" in printed
    assert "of an unwatched one's time" in printed
