"""The command: the examination told on the terminal, or as JSON, and the exit status.

Knows no checks. The rest of the room is imported where it is used, so that a half installed
package is told of too.
"""

import json
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from serve_app import __version__
from serve_app.doctor.checks.machine import INSTALL
from serve_app.doctor.finding import Finding, Verdict, fail

_LOOK = {
    Verdict.OK: ("green", "✓"),
    Verdict.WARN: ("yellow", "!"),
    Verdict.FAIL: ("bold red", "✗"),
    Verdict.SKIP: ("dim", "·"),
}
_CHECK = 13  # columns of a check's name
_NARROWEST, _WIDEST = 30, 110  # columns: of a sentence at least, of all at most


def doctor(config: Path, *, as_json: bool, console: Console | None = None) -> int:
    """The findings are told; 1 when something fails, else 0."""
    sections = _examined(config)
    findings = [one for _, group in sections for one in group]
    failed = any(one.verdict is Verdict.FAIL for one in findings)
    if as_json:
        print(json.dumps(_content(findings, ok=not failed), indent=2))
    else:
        tell(sections, console or Console(highlight=False))
    return int(failed)


def tell(sections: Sequence[tuple[str, Sequence[Finding]]], console: Console) -> None:
    """The findings stand on the terminal; plain ASCII where it is none, or wants no colour."""
    rich = console.is_terminal and "NO_COLOR" not in os.environ
    wide = min(console.width, _WIDEST) if console.is_terminal else 0
    lines = [Text.assemble(("Aura Serve", "bold"), f" {__version__}, examined")]
    for title, findings in sections:
        lines += [Text(), Text(title, style="bold" if rich else "")]
        for finding in findings:
            lines += _lines(finding, wide, rich=rich)
    lines += [Text(), *_summary([one for _, group in sections for one in group])]
    for line in lines:
        shown = line if rich else Text(_ascii(line.plain))
        console.print(shown, soft_wrap=True)


def _examined(config: Path) -> list[tuple[str, Sequence[Finding]]]:
    try:
        from serve_app.doctor.run import Probes, run
    except ImportError as error:
        said = f"a package of this service can't be imported: {' '.join(str(error).split())}"
        return [("machine", [fail("packages", said, INSTALL)])]
    return [(one.title, one.findings) for one in run(Probes(config))]


def _content(findings: Sequence[Finding], *, ok: bool) -> dict[str, object]:
    return {
        "ok": ok,
        "version": __version__,
        "findings": [
            {"check": one.check, "verdict": one.verdict, "said": one.message, "mend": one.fix}
            for one in findings
        ],
    }


def _lines(finding: Finding, wide: int, *, rich: bool) -> Iterator[Text]:
    """A finding: its verdict and its sentence, then its command on a line that can be copied."""
    style, sign = _LOOK[finding.verdict]
    verdict = f"  {sign} {finding.verdict:<6}" if rich else f"  {finding.verdict:<6}"
    indent = " " * (len(verdict) + _CHECK)
    said = [finding.message]
    if wide:
        room = max(wide - len(indent), _NARROWEST)
        said = textwrap.wrap(finding.message, room, break_long_words=False, break_on_hyphens=False)
    yield Text.assemble((verdict, style), f"{finding.check:<{_CHECK}}", said[0])
    for more in said[1:]:
        yield Text(indent + more)
    if finding.fix:
        where = ".env.local: " if finding.is_for_env_file else "$ "
        yield Text.assemble(indent, (where, "dim"), (finding.fix, "cyan"))


def _summary(findings: Sequence[Finding]) -> Iterator[Text]:
    counts = Counter(one.verdict for one in findings)
    told = ", ".join(f"{counts[one]} {one}" for one in Verdict if counts[one])
    yield Text(f"{len(findings)} checks: {told}", style="bold")
    if counts[Verdict.FAIL]:
        yield Text("Mend what fails, then again: aura doctor")
    else:
        yield Text("Start it with: make serve, or aura up")


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()
