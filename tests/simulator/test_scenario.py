"""What is simulated, by the options of the command."""

from pathlib import Path

import pytest

from serve_app.simulator.scenario import TRACES, load_of, make_scenario
from serve_app.simulator.traces import Arrival, TraceError


def test_a_steady_workload_is_one_trace_with_the_requested_load() -> None:
    scenario = make_scenario("steady", gpus=8, load=0.5, seconds=120)
    assert len(scenario.traces) == 1
    assert scenario.load == pytest.approx(0.5, rel=0.1)
    assert scenario.images == len(scenario.traces[0])


def test_another_workload_is_drawn_with_several_seeds() -> None:
    scenario = make_scenario("bursts", gpus=4, seconds=60, seed=7)
    assert len(set(scenario.traces)) == TRACES
    again = make_scenario("bursts", gpus=4, seconds=60, seed=8)
    assert again.traces[0] == scenario.traces[1]


@pytest.mark.parametrize(
    ("trace", "gpus", "seconds", "load"),
    [
        ("steady", 256, 90.0, 0.85),
        pytest.param("day", 16, 960.0, 0.25, marks=pytest.mark.long),
    ],
)
def test_what_is_not_given_depends_on_the_kind_of_trace(
    trace: str, gpus: int, seconds: float, load: float
) -> None:
    scenario = make_scenario(trace)
    assert (scenario.gpus, scenario.seconds) == (gpus, seconds)
    assert scenario.load == pytest.approx(load, rel=0.05)


def test_a_file_is_simulated_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    for seconds in (8.0, 2000.5):
        file.write_text(f"at,steps\n0,20\n{seconds},30\n")
        scenario = make_scenario(str(file), gpus=4)
        assert scenario.seconds == seconds
        assert scenario.traces == ((Arrival(0, 20), Arrival(seconds, 30)),)
    file.write_text("at,steps\n0,20\n")
    assert make_scenario(str(file), gpus=4).seconds == 1


@pytest.mark.parametrize(
    ("given", "options"),
    [({"load": 0.5}, "--load"), ({"load": 0.5, "seconds": 60}, "--load and --seconds")],
)
def test_a_file_takes_no_option_that_shapes_a_drawn_trace(
    tmp_path: Path, given: dict[str, float], options: str
) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("at,steps\n0,20\n")
    with pytest.raises(TraceError, match=f"so {options} can't be given"):
        make_scenario(str(file), **given)  # type: ignore[arg-type]


def test_a_flood_is_one_trace_with_a_load_of_its_own() -> None:
    scenario = make_scenario("flood")
    assert (scenario.gpus, scenario.seconds, len(scenario.traces)) == (4, 60.0, 1)
    with pytest.raises(TraceError, match="so --load can't be given"):
        make_scenario("flood", load=0.5)


def test_a_misspelt_workload_is_suggested_and_a_missing_file_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"--trace stedy is neither .* Did you mean steady\?"):
        make_scenario("stedy")
    with pytest.raises(TraceError, match=r"none\.csv is neither a file nor one of steady, bursts"):
        make_scenario(str(tmp_path / "none.csv"))
    with pytest.raises(TraceError, match="can't be read: Is a directory"):
        make_scenario(str(tmp_path))


def test_load_is_relative_to_what_the_gpus_could_do() -> None:
    trace = [Arrival(0.0, 30)]
    assert load_of(trace, 4, 10.0) == pytest.approx(load_of(trace, 1, 10.0) / 4)
    assert load_of(trace, 1, 10.0) == pytest.approx(load_of(trace * 2, 1, 20.0))
