"""The end of a service: its requests are finished, or spooled, or lost, and `up` is told which."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError

from serve_app.cli.console import LOST, OK
from serve_app.config.app_args import AppArgs
from serve_app.core.service.unfinished import Unfinished

_MIN_DRAIN_SECONDS = 600.0  # for in-flight images; the args may allow more
_STOP_SECONDS = 10.0  # in which an ingress replica says what it could not finish
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
    silent = [end for end in ended if isinstance(end, RayError)]  # whose process is gone
    try:
        answers = handle.broadcast("stop").results(timeout_s=_STOP_SECONDS, return_exceptions=True)
    except Exception as error:
        answers = [error]
    counts = [answer for answer in answers if isinstance(answer, Unfinished)]
    unknown = len(silent) + len(answers) - len(counts)
    return unfinished_requests(sum(counts, Unfinished()), unknown, spool)


def unfinished_requests(
    unfinished: Unfinished, unknown: int, spool: Path | None
) -> tuple[str, int]:
    """Return what a stop has not finished, in words, and the exit code for it.

    `unknown` is the number of ingress replicas that did not say what they could not finish.
    """
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
