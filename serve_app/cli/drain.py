"""The end of a service: its requests are finished, or spooled, or lost, and `up` is told which."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError

from serve_app.cli.console import LOST, OK
from serve_app.config.app_args import AppArgs
from serve_app.core.service.unfinished import Unfinished

_MIN_DRAIN_SECONDS = 600.0  # for in-flight images; the args may allow more
_STOP_SECONDS = 10.0  # in which an ingress replica says what it could not finish
_END_SECONDS = 2.0  # in which a drain should end once everything is stopped
_POLL_SECONDS = 0.1  # between two looks for the second signal


def patience(args: AppArgs, spool: Path | None) -> float:
    """Return the seconds that a drain may take. With a spool the operator's own number counts."""
    return args.drain_seconds if spool else max(_MIN_DRAIN_SECONDS, args.drain_seconds)


def drain(
    name: str, forced: threading.Event, seconds: float, spool: Path | None
) -> tuple[str, int]:
    """Wait until every ingress replica has finished what it accepted, or until `forced` is set.

    Return what is not finished, in words, and the exit code for it.
    """
    handle = serve.get_app_handle(name)
    ended: list[Any] = [TimeoutError()]
    done = threading.Event()
    calls = handle.broadcast("drain")

    def wait() -> None:
        with suppress(Exception):  # Serve itself does not answer
            ended[:] = calls.results(timeout_s=seconds, return_exceptions=True)
        done.set()

    threading.Thread(target=wait, daemon=True).start()
    while not done.wait(_POLL_SECONDS) and not forced.is_set():
        pass
    if done.is_set() and not any(isinstance(end, Exception) for end in ended):
        return "", OK
    try:
        answers = handle.broadcast("stop").results(timeout_s=_STOP_SECONDS, return_exceptions=True)
    except Exception as error:
        answers = [error]
    done.wait(_END_SECONDS)  # what is drained now has ended, and what died is known as dead
    return unfinished_requests(ended, answers, spool)


def unfinished_requests(
    ended: Sequence[object], answers: Sequence[object], spool: Path | None
) -> tuple[str, int]:
    """Return what a stop has not finished, in words, and the exit code for it.

    `ended` is what came of each ingress replica's drain: None, an error of a process that is gone,
    or any other error if it took too long. `answers` is what came of their stop.
    """
    counts = [answer for answer in answers if isinstance(answer, Unfinished)]
    unfinished = sum(counts, Unfinished())
    unknown = len(answers) - len(counts) + sum(isinstance(end, RayActorError) for end in ended)
    lines = []
    if unfinished.spooled:
        spooled = _count(unfinished.spooled, "request")
        lines.append(f"{spooled} in {spool}, which the next start finishes")
    if unfinished.lost:
        lines.append(f"{_count(unfinished.lost, 'request')} lost, which had been accepted")
    if unknown:
        ingresses = _count(unknown, "ingress replica")
        lines.append(f"unknown what became of the requests of {ingresses}")
    return "\n".join(lines), LOST if unfinished.lost or unknown else OK


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
