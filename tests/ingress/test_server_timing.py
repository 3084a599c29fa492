import re

from serve_app.ingress.server_timing import Stopwatch
from tests.support.api import Client


def test_laps_are_listed_in_order_in_milliseconds() -> None:
    times = iter([1.0, 1.002, 1.5])
    watch = Stopwatch(clock=lambda: next(times))
    watch.lap("validate")
    watch.lap("make")
    assert watch.header == "validate;dur=2.00, make;dur=498.00"


async def test_an_answer_tells_where_its_time_went(client: Client) -> None:
    for route in ("/generate", "/v1/images/generations"):
        answer = await client().post(route, json={"prompt": "a"})
        header = answer.headers["server-timing"]
        assert re.fullmatch(r"validate;dur=[\d.]+, make;dur=[\d.]+, write;dur=[\d.]+", header)
