"""Jobs that are watched, through Ray and over HTTP: from their request, or joined later."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import httpx
import pytest

from tests.support.event_client import Event, events
from tests.support.replica_census import ReplicaCensus, replica_census
from tests.support.service import APP, LONG, Service
from tests.support.waiting import until

pytestmark = pytest.mark.ray

STREAM = {**LONG, "stream": True}


def names(found: Iterator[Event]) -> list[str]:
    return [name for name, _ in found]


def test_a_stream_shows_the_image_as_it_comes_and_brings_the_service_s_bytes(
    service: Service,
) -> None:
    expected = service.expected_image(0.8)
    with events("POST", f"{service.address}/generate", {**STREAM, "handoff": 0.8}) as stream:
        found = list(stream)
    assert [name for name, _ in found[-2:]] == ["image", "done"]
    assert found[-2][1]["png"] == expected
    previews = [data for name, data in found if name == "preview"]
    assert len(previews) >= 2
    stages = {data["stage"] for name, data in found if name == "progress"}
    assert stages == {"base", "refiner"}


def submit(service: Service) -> str:
    """Ask for a job that is long at work, and return its address."""
    headers = {"Prefer": "respond-async"}
    answer = httpx.post(f"{service.address}/generate", json=LONG, headers=headers, timeout=60)
    assert answer.status_code == 202
    return f"{service.address}{answer.headers['location']}"


def join_at_once(address: str, count: int = 50) -> list[list[str]]:
    """Join a job by so many clients, and return the names of the events that each got."""

    def join(_: int) -> list[str]:
        with events("GET", f"{address}/events") as stream:  # on a connection of its own
            return names(stream)

    with ThreadPoolExecutor(count) as clients:
        return list(clients.map(join, range(count)))


def test_fifty_streams_at_once_joined_through_both_ingresses_leave_nothing_behind(
    service: Service,
) -> None:
    join_at_once(submit(service))  # what a first crowd brings is there from then on
    before = replica_census(APP, "Ingress")
    address = submit(service)
    with ThreadPoolExecutor(1) as clients:
        joined = clients.submit(join_at_once, address)
        until(lambda: all_have_more_tasks(before))
        found = joined.result()
    assert {tuple(each[-2:]) for each in found} == {("image", "done")}
    assert all("preview" in each for each in found)
    job = httpx.get(address).json()
    assert (job["state"], job["progress"]) == ("succeeded", None)
    until(lambda: has_no_more(before))


def has_no_more(before: dict[str, ReplicaCensus]) -> bool:
    """Return whether the ingresses are as they were; 25 would be left of the streams of each."""
    now = replica_census(APP, "Ingress")
    return all(now[name].is_within(before[name], spare=4) for name in now)


def all_have_more_tasks(before: dict[str, ReplicaCensus]) -> bool:
    """Return whether each ingress, of which there are two, serves some of the streams."""
    now = replica_census(APP, "Ingress")
    return len(now) == 2 and all(now[name].tasks >= before[name].tasks + 10 for name in now)


def test_leaving_a_stream_ends_its_work_within_a_step(service: Service) -> None:
    cancelled = service.counts("base")["cancelled"]
    with events("POST", f"{service.address}/generate", STREAM) as stream:
        for name, _ in stream:
            if name == "preview":
                break
    until(lambda: service.counts("base")["cancelled"] == cancelled + 1)
    assert not service.is_busy("base")


@pytest.mark.long  # it goes by the clock, so nothing else may run
def test_from_the_second_step_on_the_time_left_is_right_within_a_fifth(service: Service) -> None:
    errors = []
    for seed in range(3):
        marks = []
        body = {**STREAM, "seed": seed, "steps": 60}
        with events("POST", f"{service.address}/generate", body) as stream:
            for name, data in stream:
                now = time.monotonic()
                if name == "progress" and data["step"] >= 2 and data["etaMs"] is not None:
                    marks.append((now, data["etaMs"] / 1000))
                elif name == "image":
                    end = now
        errors += [abs(eta - (end - at)) / (end - at) for at, eta in marks]
    p90 = sorted(errors)[int(0.9 * len(errors))]
    print(f"error of the time left: median {median(errors):.0%}, 90th percentile {p90:.0%}")
    assert median(errors) <= 0.20
    assert p90 <= 0.35
