"""What `aura up` says at its end of requests that were accepted and not finished."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError

from serve_app.cli.console import LOST, OK
from serve_app.cli.drain import patience, unfinished_requests
from serve_app.config.app_args import AppArgs
from serve_app.core.service.unfinished import Unfinished

SPOOL = Path("/var/spool/aura")
LATE = GetTimeoutError("the drain has not ended")  # a RayError too


@pytest.mark.parametrize(
    ("ended", "answers", "lines", "code"),
    [
        ([LATE], [Unfinished()], [], OK),
        (
            [LATE, None],
            [Unfinished(spooled=1), Unfinished()],
            [f"1 request in {SPOOL}, which the next start finishes"],
            OK,
        ),
        (
            [TimeoutError()],
            [Unfinished(lost=17), Unfinished(lost=1)],
            ["18 requests lost, which had been accepted"],
            LOST,
        ),
        (
            [LATE],
            [GetTimeoutError("it is stopped")],
            ["unknown what became of the requests of 1 ingress replica"],
            LOST,
        ),
        (
            [ActorDiedError(), LATE],  # Serve has replaced the first one
            [Unfinished(), Unfinished(2, 1), GetTimeoutError("it is stopped")],
            [
                f"2 requests in {SPOOL}, which the next start finishes",
                "1 request lost, which had been accepted",
                "unknown what became of the requests of 2 ingress replicas",
            ],
            LOST,
        ),
    ],
)
def test_each_kind_has_its_line_and_only_a_loss_an_exit_code(
    ended: Sequence[object], answers: Sequence[object], lines: list[str], code: int
) -> None:
    assert unfinished_requests(ended, answers, SPOOL) == ("\n".join(lines), code)


def test_with_a_spool_a_drain_takes_no_longer_than_the_operator_says() -> None:
    args = AppArgs.model_validate({"drain_seconds": 45})
    assert (patience(args, SPOOL), patience(args, None)) == (45, 600)
    long = AppArgs.model_validate({"drain_seconds": 1800})
    assert (patience(long, SPOOL), patience(long, None)) == (1800, 1800)
