import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.diffusion.sizes import ASPECTS, SizeRules, nearest_aspect
from serve_app.core.errors import InvalidRequest

SDXL = SizeRules(1024)
side = st.integers(1, 8192)


@pytest.mark.parametrize("native", [128, 512, 1024])
def test_every_named_aspect_is_a_legal_size(native: int) -> None:
    rules = SizeRules(native)
    for size in map(rules.for_aspect, ASPECTS):
        rules.check(*size)
        assert rules.fit(*size) == size


def test_the_aspects_of_sdxl_are_sizes_it_was_trained_on() -> None:
    assert SDXL.for_aspect("16:9") == (1344, 768)
    assert SDXL.for_aspect("Auto") == (1024, 1024)


def test_a_named_aspect_is_close_to_its_ratio() -> None:
    for aspect in ASPECTS.keys() - {"Auto"}:
        width, height = SDXL.for_aspect(aspect)
        wide, high = map(int, aspect.split(":"))
        assert abs(width / height / (wide / high) - 1) < 0.05


def test_an_unknown_aspect_is_refused_with_the_list() -> None:
    with pytest.raises(InvalidRequest, match="must be one of Auto, 1:1"):
        SDXL.for_aspect("7:5")


@pytest.mark.parametrize("size", [(256, 256), (2048, 1168), (1024, 1024)])
def test_sizes_within_the_range_are_legal(size: tuple[int, int]) -> None:
    SDXL.check(*size)
    assert SDXL.fit(*size) == SDXL.scaled(*size) == size


@pytest.mark.parametrize(
    ("size", "path"),
    [
        ((248, 1024), "width"),
        ((1024, 2056), "height"),
        ((1001, 1024), "width"),
        ((2048, 2048), "width"),
    ],
)
def test_sizes_outside_the_range_are_refused_by_name(size: tuple[int, int], path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SDXL.check(*size)
    assert refused.value.path == path


@given(side, side, st.sampled_from([128, 512, 1024]))
def test_every_image_fits_a_legal_size(width: int, height: int, native: int) -> None:
    rules = SizeRules(native)
    fitted = rules.fit(width, height)
    rules.check(*fitted)
    assert rules.fit(*fitted) == fitted


def test_a_large_picture_keeps_its_ratio() -> None:
    width, height = SDXL.fit(6000, 4000)
    assert abs(width / height - 1.5) < 0.02


def test_a_size_meant_for_sdxl_is_scaled_for_a_smaller_checkpoint() -> None:
    small = SizeRules(128)
    assert small.scaled(1024, 1024) == (128, 128)
    assert small.scaled(1536, 1024) == (192, 128)
    assert small.scaled(96, 128) == (96, 128)
    assert small.scaled(512, 512) == (128, 128)
    assert small.scaled(512, 768) == (104, 160)
    assert [small.scaled(side, side)[0] for side in (48, 50, 97, 100)] == [48, 48, 96, 96]
    assert SizeRules(512).scaled(250, 250) == (248, 248)
    assert SizeRules(512).scaled(8, 8) == (128, 128)
    assert SizeRules(1024).scaled(1536, 1024) == (1536, 1024)
    assert SizeRules(1024).scaled(1, 99_999) == (256, 2048)


@pytest.mark.parametrize("native", [64, 128, 512, 1024])
def test_the_largest_picture_is_legal_and_one_row_more_is_not(native: int) -> None:
    rules = SizeRules(native)
    width, height = rules.largest
    rules.check(width, height)
    assert width == rules.max_side
    assert width * (height + 8) > rules.max_pixels


def test_the_aspect_sizes_are_each_named_once() -> None:
    sizes = SizeRules(1024).aspect_sizes
    assert len(sizes) == len(set(sizes)) == 10  # Auto is 1:1
    assert sizes[0] == (1024, 1024)
    assert (832, 1216) in sizes


@pytest.mark.parametrize("aspect", [name for name in ASPECTS if name != "Auto"])
def test_the_ratio_nearest_to_a_ratios_own_size_is_that_ratio(aspect: str) -> None:
    width, height = map(int, aspect.split(":"))
    assert nearest_aspect(*ASPECTS[aspect]) == nearest_aspect(64 * width, 64 * height) == aspect


def test_a_size_beyond_all_ratios_has_the_widest_or_the_highest() -> None:
    assert nearest_aspect(2048, 256) == "21:9"
    assert nearest_aspect(256, 2048) == "9:16"
