import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.diffusion.resizing import cut_share, fitted

side = st.integers(1, 8192)
size = st.tuples(side, side)


@pytest.mark.parametrize(
    ("image", "new", "share"),
    [
        ((4096, 256), (2048, 256), 0.5),
        ((256, 4096), (256, 2048), 0.5),
        ((1024, 1024), (512, 512), 0),
        ((1000, 500), (500, 500), 0.5),
        ((500, 1000), (1000, 500), 0.75),
    ],
)
def test_the_share_that_is_cut(image: tuple[int, int], new: tuple[int, int], share: float) -> None:
    assert cut_share(image, new) == pytest.approx(share)


@given(size, size)
def test_a_fitted_image_touches_two_edges_and_crosses_none(
    image: tuple[int, int], new: tuple[int, int]
) -> None:
    width, height = fitted(image, new)
    assert 1 <= width <= new[0]
    assert 1 <= height <= new[1]
    assert width == new[0] or height == new[1]
    assert 0 <= cut_share(image, new) < 1


def test_a_fitted_image_keeps_its_ratio() -> None:
    assert fitted((4096, 256), (2048, 256)) == (2048, 128)
    assert fitted((300, 600), (1024, 1024)) == (512, 1024)
