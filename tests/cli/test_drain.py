"""What `aura up` says at its end of requests that were accepted and not finished."""

from pathlib import Path

import pytest

from serve_app.cli.console import LOST, OK
from serve_app.cli.drain import patience, unfinished_requests
from serve_app.config.app_args import AppArgs
from serve_app.core.service.unfinished import Unfinished

SPOOL = Path("/var/spool/aura")


@pytest.mark.parametrize(
    ("unfinished", "unknown", "lines", "code"),
    [
        (Unfinished(), 0, [], OK),
        (Unfinished(spooled=1), 0, [f"1 request in {SPOOL}, which the next start finishes"], OK),
        (Unfinished(lost=18), 0, ["18 requests lost, which had been accepted"], LOST),
        (Unfinished(), 1, ["unknown what became of the requests of 1 ingress replica"], LOST),
        (
            Unfinished(2, 1),
            2,
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
    unfinished: Unfinished, unknown: int, lines: list[str], code: int
) -> None:
    assert unfinished_requests(unfinished, unknown, SPOOL) == ("\n".join(lines), code)


def test_with_a_spool_a_drain_takes_no_longer_than_the_operator_says() -> None:
    args = AppArgs.model_validate({"drain_seconds": 45})
    assert (patience(args, SPOOL), patience(args, None)) == (45, 600)
    long = AppArgs.model_validate({"drain_seconds": 1800})
    assert (patience(long, SPOOL), patience(long, None)) == (1800, 1800)
