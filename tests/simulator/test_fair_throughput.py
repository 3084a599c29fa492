"""What fair shares cost: the work that is done while images wait, relative to urgency alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from statistics import fmean

import pytest

from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize
from serve_app.simulator.cluster import Cluster
from serve_app.simulator.comparison import SIZE
from serve_app.simulator.fairness import relative_throughput
from serve_app.simulator.gpu_speed import GpuSpeed
from serve_app.simulator.policies import route_by_owed_work
from serve_app.simulator.traces import MIX, Arrival

SINGLE = {Stage.BASE: 1}
FOUR = {Stage.BASE: 2, Stage.REFINER: 2}
ELEVEN = {Stage.BASE: 8, Stage.REFINER: 3}
WIDE, TALL = (1344, 768), (832, 1216)
THREE = ((1024, 1024), WIDE, TALL)
PADDED = BatchSize(4, (8,))  # where a part-empty batch takes as long as a full one
SIZES = (*THREE, (1152, 896), (896, 1152), (1216, 832), (768, 1344), (1536, 640))
MORE_SIZES = (*SIZES, (640, 1536), (1024, 960), (960, 1024), (1088, 960), (960, 1088), (1088, 896))


def flood(
    caller: str,
    number: int,
    steps: int = 30,
    size: tuple[int, int] = (1024, 1024),
    *,
    handoff: float = 0.8,
    weight: float = 1.0,
) -> list[Arrival]:
    width, height = size
    arrival = Arrival(0.0, steps, width, height, handoff=handoff, caller=caller, weight=weight)
    return [arrival] * number


def steady(size: tuple[int, int] = (1024, 1024), *, handoff: float = 0.8) -> list[Arrival]:
    """Return an image of a caller's every two seconds."""
    (image,) = flood("steady", 1, size=size, handoff=handoff)
    return [replace(image, at=1.0 + 2 * number) for number in range(40)]


def slow(weight: float) -> list[Arrival]:
    """Return a long wide image of a caller's every six seconds."""
    (image,) = flood("slow", 1, 60, WIDE, weight=weight)
    return [replace(image, at=1.0 + 6 * number) for number in range(20)]


def of_sizes(number: int, *callers: tuple[str, float]) -> list[Arrival]:
    """Return images of three sizes in turn, of callers with these weights."""
    return [
        image
        for _ in range(number)
        for size in THREE
        for caller, weight in callers
        for image in flood(caller, 1, size=size, weight=weight)
    ]


def a_size_each(sizes: Sequence[tuple[int, int]], number: int, steps: int = 30) -> list[Arrival]:
    """Return floods of callers of whom each has a size of its own."""
    return [image for size in sizes for image in flood(f"of {size}", number, steps, size)]


def mixed(callers: int, seed: int, number: int = 200) -> list[Arrival]:
    """Return images of all kinds, which come at once."""
    rng, trace = Random(seed), list[Arrival]()
    while len(trace) < number:
        caller = f"{rng.randrange(callers)}"
        trace += [replace(image, caller=caller) for image in MIX.draw(0.0, rng)]
    return trace


def throughput(
    trace: Sequence[Arrival],
    replicas: Mapping[Stage, int] = SINGLE,
    ingresses: int = 1,
    size: BatchSize = SIZE,
) -> float:
    trace = sorted(trace, key=lambda arrival: arrival.at)
    fair, unfair = (
        Cluster(
            size, GpuSpeed(), route_by_owed_work(), None, replicas, fair=fair, ingresses=ingresses
        ).run(trace)
        for fair in (True, False)
    )
    share = relative_throughput(fair, unfair, trace, replicas)
    assert share is not None
    return share


def long(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.long)


TRACES: dict[str, list[Arrival]] = {
    "an image now and then beside a flood": flood("a", 120) + steady(),
    "beside short ones": flood("a", 200, 10) + steady(),
    "beside long ones": flood("a", 40, 150) + steady(),
    "in a balanced pipeline": flood("a", 150, handoff=0.5) + steady(handoff=0.5),
    "two floods": flood("a", 100) + flood("b", 100),
    "short and long": flood("a", 200, 10) + flood("b", 20, 150),
    "weights": flood("a", 150, weight=3.0) + flood("b", 80),
    "two sizes, few": flood("a", 40, 20) + flood("b", 40, 20, WIDE),
    "two sizes": flood("a", 100) + flood("b", 100, size=WIDE),
    "two sizes, weights": flood("a", 150, weight=3.0) + flood("b", 80, size=WIDE),
    "two sizes, balanced": flood("a", 150, handoff=0.5) + flood("b", 150, size=WIDE, handoff=0.5),
    "three sizes": flood("a", 100) + flood("b", 100, size=WIDE) + flood("c", 100, size=TALL),
    "three sizes each": of_sizes(40, ("a", 1.0), ("b", 1.0)),
    "three sizes each, weights": of_sizes(40, ("a", 3.0), ("b", 1.0)),
    "few images beside three sizes": of_sizes(70, ("a", 1.0)) + slow(1.0),
    "eight sizes": a_size_each(SIZES, 30),
    "fourteen sizes": a_size_each(MORE_SIZES, 18),
}


@pytest.mark.parametrize(
    ("name", "replicas", "ingresses"),
    [
        ("two sizes, few", SINGLE, 1),
        *(
            long(name, replicas, ingresses)
            for name in TRACES
            for replicas, ingresses in ((SINGLE, 1), (FOUR, 2), (ELEVEN, 1))
        ),
    ],
)
def test_fairness_costs_no_throughput(
    name: str, replicas: Mapping[Stage, int], ingresses: int
) -> None:
    times = 1 if replicas is SINGLE else sum(replicas.values()) // 2
    assert throughput(TRACES[name] * times, replicas, ingresses) >= 0.98


def test_nor_where_each_of_eight_callers_has_a_size_of_its_own() -> None:
    assert throughput(a_size_each(SIZES, 12, 20)) >= 0.98


@pytest.mark.long
@pytest.mark.parametrize(
    ("replicas", "times", "least"), [(SINGLE, 1, 0.98), (FOUR, 2, 0.98), (ELEVEN, 5, 0.97)]
)
def test_nor_does_a_heavy_caller_with_little_work(
    replicas: Mapping[Stage, int], times: int, least: float
) -> None:
    """The flood's images fill its batches, on many replicas not from their first step on."""
    trace = of_sizes(70, ("a", 1.0)) + slow(9.0)
    assert throughput(trace * times, replicas) >= least


@pytest.mark.long
@pytest.mark.parametrize("callers", [2, 3, 10])
def test_nor_where_all_kinds_of_images_are_mixed(callers: int) -> None:
    """The mean counts: in another order the same images need a tenth more or less time."""
    assert fmean(throughput(mixed(callers, seed)) for seed in range(10)) >= 0.98


@pytest.mark.long
@pytest.mark.parametrize("replicas", [SINGLE, FOUR])
def test_a_few_images_of_another_size_have_turns_of_their_own(
    replicas: Mapping[Stage, int],
) -> None:
    """They are done in two image times, so their turns are not full, though all are used."""
    trace = flood("a", 150) + steady(WIDE)
    assert throughput(trace, replicas, size=PADDED) >= 0.9
    assert throughput(trace, replicas) >= 0.98


@pytest.mark.long
@pytest.mark.parametrize(("weight", "least"), [(1.0, 0.88), (9.0, 0.68)])
def test_the_heavier_their_caller_the_more_turns_they_have(weight: float, least: float) -> None:
    """The caller's one image has nine of ten turns at weight 9, each a quarter full."""
    trace = flood("a", 200) + slow(weight)
    assert least <= throughput(trace, size=PADDED) <= least + 0.05
    assert throughput(trace) >= 0.98


@pytest.mark.long
def test_sixteen_callers_with_a_size_each_have_part_empty_batches() -> None:
    """A replica has places for fifteen full batches besides the reserved ones."""
    trace = a_size_each((*MORE_SIZES, (896, 1088), (1280, 768)), 20)
    assert 0.9 <= throughput(trace, size=PADDED) < 0.98
    assert throughput(trace) >= 0.98
