"""`aura doctor`: print what is wrong with the installation, as text or JSON.

No checks. The rest of `doctor` is imported where it is used, so that a half installed package is
reported too.
"""

import json
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from serve_app import __version__
from serve_app.doctor.checks.machine import INSTALL_COMMAND
from serve_app.doctor.finding import Finding, Verdict, fail

TitledFindings = tuple[str, Sequence[Finding]]
_STYLES = {
    Verdict.OK: ("green", "✓"),
    Verdict.WARN: ("yellow", "!"),
    Verdict.FAIL: ("bold red", "✗"),
    Verdict.SKIP: ("dim", "·"),
}
_CHECK_WIDTH = 13  # columns of a check's name
_MIN_TEXT_WIDTH, _MAX_WIDTH = 30, 110  # columns: of a sentence at least, of everything at most


def doctor(
    config: Path, *, as_json: bool, deep: bool = False, console: Console | None = None
) -> int:
    """Print all findings; return 1 if something fails, else 0.

    With `deep` all weights are read too, with their progress on the terminal.
    """
    with _progress() if deep else nullcontext() as on_bytes:
        sections = _run_checks(config, on_bytes)
    findings = [finding for _, group in sections for finding in group]
    failed = any(finding.verdict is Verdict.FAIL for finding in findings)
    if as_json:
        print(json.dumps(_to_json(findings, ok=not failed), indent=2))
    else:
        print_findings(sections, console or Console(highlight=False))
    return int(failed)


def print_findings(sections: Sequence[TitledFindings], console: Console) -> None:
    """Print findings for a person: plain ASCII without a terminal, or with NO_COLOR."""
    is_rich = console.is_terminal and "NO_COLOR" not in os.environ
    width = min(console.width, _MAX_WIDTH) if console.is_terminal else None
    lines = [Text.assemble(("Aura Serve", "bold"), f" {__version__}: doctor")]
    for title, findings in sections:
        lines += [Text(), Text(title, style="bold" if is_rich else "")]
        for finding in findings:
            lines += _lines(finding, width, is_rich=is_rich)
    lines += [Text(), *_summary([finding for _, group in sections for finding in group])]
    for line in lines:
        console.print(line if is_rich else Text(_to_ascii(line.plain)), soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], object]]:
    """Show how much of the weights has been read."""
    columns = (
        TextColumn("reading the weights"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _run_checks(
    config: Path, on_bytes: Callable[[int, int], object] | None
) -> list[TitledFindings]:
    try:
        from serve_app.doctor.run import Probes, run
    except ImportError as error:
        reason = " ".join(str(error).split())
        message = f"a package that this service needs can't be imported: {reason}"
        return [("machine", [fail("packages", message, INSTALL_COMMAND)])]
    probes = Probes(config, on_bytes=on_bytes)
    return [(section.title, section.findings) for section in run(probes)]


def _to_json(findings: Sequence[Finding], *, ok: bool) -> dict[str, object]:
    return {
        "ok": ok,
        "version": __version__,
        "findings": [
            {
                "check": finding.check,
                "verdict": finding.verdict,
                "message": finding.message,
                "fix": finding.fix,
            }
            for finding in findings
        ],
    }


def _lines(finding: Finding, width: int | None, *, is_rich: bool) -> Iterator[Text]:
    """Yield the verdict with its sentence, wrapped, then the fix on a line that can be copied."""
    style, sign = _STYLES[finding.verdict]
    verdict = f"  {sign} {finding.verdict:<6}" if is_rich else f"  {finding.verdict:<6}"
    indent = " " * (len(verdict) + _CHECK_WIDTH)
    message = [finding.message]
    if width is not None:
        message = textwrap.wrap(
            finding.message,
            max(width - len(indent), _MIN_TEXT_WIDTH),
            break_long_words=False,
            break_on_hyphens=False,
        )
    yield Text.assemble((verdict, style), f"{finding.check:<{_CHECK_WIDTH}}", message[0])
    for line in message[1:]:
        yield Text(indent + line)
    if finding.fix:
        where = ".env.local: " if finding.is_for_env_file else "$ "
        yield Text.assemble(indent, (where, "dim"), (finding.fix, "cyan"))


def _summary(findings: Sequence[Finding]) -> Iterator[Text]:
    counts = Counter(finding.verdict for finding in findings)
    listed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    yield Text(f"{len(findings)} checks: {listed}", style="bold")
    if counts[Verdict.FAIL]:
        yield Text("Fix what fails, then run again: aura doctor")
    else:
        yield Text("Start the service: make serve, or aura up")


def _to_ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()
