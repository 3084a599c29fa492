"""Walk through the documentation as a new user does: run its commands in a fresh clone.

    python scripts/walk_documentation.py [--key] [--offline]

Every line of the `bash` blocks and every `python` block of README.md and docs/ is run, page by
page, in a clone in a temporary folder. The service runs until another command starts it anew, or
until the end. Prints for each command its seconds, its exit code and its first lines; the exit
code is 1 if a command failed. `--key` walks with API_KEYS set. `--offline` needs root: a network
namespace cuts the network off once everything is installed. Needs port 4000.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("api", "install", "network", "models", "operations")),
    "docs/scaling.md",  # docs/docker.md needs Docker: make image-check tries the image
]
KEY = "a-key-of-the-walk"
SERVICE = re.compile(r"(^|\s)(make serve|\S*aura up|serve run)\b")
START_TIMEOUT_S = 600.0
METRICS_TIMEOUT_S = 30.0  # metrics are published every ten seconds
NOT_RUN = {  # commands by how they begin, and why they are not run
    "make test": "run by CI",
    "docker": "needs a Docker engine",
    "kubectl": "needs a Kubernetes cluster",
    "helm": "needs a Kubernetes cluster",
    "VITE_LOCAL_ENGINE_URL": "needs the frontend",
    "sudo": "changes the machine",
    "ssh": "needs a server",
    "tailscale": "needs an account",
    "cloudflared": "needs an account",
}
NEEDS_NETWORK = ("aura download", "pip install", "hf ")
_FENCE = re.compile(r"^ *```(bash|python)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a page, by the number of its line."""

    page: str
    line: int
    language: str
    text: str


def commands(page: str) -> Iterator[Command]:
    """Yield the commands of a page: each `python` block, and each line of a `bash` block."""
    text = (ROOT / page).read_text()
    for fence in _FENCE.finditer(text):
        language, block = fence.groups()
        line = text.count("\n", 0, fence.start(2)) + 1
        if language == "python":
            yield Command(page, line, language, block)
            continue
        for logical in re.findall(r"(?:.*(?:\\|\|)\n)*.*\n", block):
            if logical.strip() and not logical.lstrip().startswith("#"):
                yield Command(page, line, language, logical.strip())
            line += logical.count("\n")


class Walk:
    """A walk through the pages in one clone, with at most one service running."""

    def __init__(self, clone: Path, key: bool, offline: bool) -> None:
        self._clone = clone
        self._offline = offline
        self._service: subprocess.Popen[bytes] | None = None
        self._environment = {**os.environ, "CURL_HOME": str(clone), "NO_COLOR": "1"}
        self.failures = 0
        if key:
            self._environment |= {"API_KEYS": KEY, "OPENAI_API_KEY": KEY}
            (clone / ".curlrc").write_text(f'header = "Authorization: Bearer {KEY}"\n')

    def page(self, page: str) -> None:
        """Run the commands of a page."""
        print(f"\n# {page}")
        for command in commands(page):
            reason = self._reason_not_to_run(command)
            if reason:
                self._show(command, f"not run: {reason}", "")
            elif SERVICE.search(command.text):
                self._start(command)
            else:
                self._run(command)

    def _reason_not_to_run(self, command: Command) -> str | None:
        if self._offline and any(name in command.text for name in NEEDS_NETWORK):
            return "needs the network"
        reasons = (why for start, why in NOT_RUN.items() if command.text.startswith(start))
        return next(reasons, None)

    def _run(self, command: Command) -> None:
        words = ["bash", "-euo", "pipefail", "-c", command.text]
        if command.language == "python":
            key = self._environment.get("OPENAI_API_KEY", "anything")
            text = re.sub(r'api_key="[^"]*"', f"api_key={key!r}", command.text)
            words = [".venv/bin/python", "-c", text]
        start = time.monotonic()
        while True:
            done = subprocess.run(
                words,
                cwd=self._clone,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
            late = time.monotonic() - start > METRICS_TIMEOUT_S
            if done.returncode == 0 or late or ":4001/" not in command.text:
                break
            time.sleep(1)
        no_hub = "can't be reached" in done.stderr and "aura download" in command.text
        self.failures += done.returncode != 0 and not no_hub
        outcome = f"exit code {done.returncode}, {time.monotonic() - start:.1f} s"
        self._show(command, outcome, done.stdout + done.stderr)

    def _start(self, command: Command) -> None:
        """Start the service in place of an earlier one, and wait until it is ready."""
        self.stop()
        start = time.monotonic()
        with (self._clone / "service.log").open("wb") as log:
            self._service = subprocess.Popen(
                ["bash", "-c", command.text],
                cwd=self._clone,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ready = self._wait_until_ready()
        self.failures += not ready
        outcome = f"{'ready' if ready else 'NOT READY'} after {time.monotonic() - start:.1f} s"
        self._show(command, outcome, self._log(), lines=20)

    def _wait_until_ready(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._service and self._service.poll() is None:
            try:
                with urllib.request.urlopen("http://127.0.0.1:4000/health", timeout=2):
                    return True
            except OSError:
                time.sleep(0.5)
        return False

    def stop(self) -> None:
        """Stop the service as Ctrl-C does, and print what it prints."""
        if self._service is None:
            return
        read = len(self._log())
        start = time.monotonic()
        os.killpg(self._service.pid, signal.SIGINT)  # what a terminal's Ctrl-C does
        code = self._service.wait(timeout=120)
        self._service = None
        print(f"\n  Ctrl-C: ended with {code} after {time.monotonic() - start:.1f} s")
        _show_lines(self._log()[read:], 20)

    def _log(self) -> str:
        return (self._clone / "service.log").read_text(errors="replace")

    def _show(self, command: Command, outcome: str, output: str, lines: int = 6) -> None:
        first, *rest = command.text.splitlines()
        print(f"\n{command.page}:{command.line}: {first}{' …' if rest else ''}\n  {outcome}")
        _show_lines(output, lines)


def _show_lines(text: str, lines: int) -> None:
    shown = [line.rstrip()[:140] for line in text.splitlines() if line.strip()]
    for line in shown[:lines]:
        print(f"  | {line}")
    if len(shown) > lines:
        print(f"  | … {len(shown) - lines} more lines")


def prepare(folder: Path) -> None:
    """Clone the repository and install it, as the first `make` does; print the seconds."""
    start = time.monotonic()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    subprocess.run(["make", "-s", ".venv/.runtime"], cwd=folder, check=True)
    print(f"cloned and installed in {time.monotonic() - start:.1f} s", flush=True)
    subprocess.run(
        [folder / ".venv/bin/python", "-m", "pip", "install", "-q", "openai"], check=True
    )


def main() -> int:
    """Walk; return 1 if a command failed."""
    parser = argparse.ArgumentParser(description="Run the documentation's commands in a clone.")
    parser.add_argument("--key", action="store_true", help="walk with API_KEYS set")
    parser.add_argument("--offline", action="store_true", help="cut the network off; needs root")
    parser.add_argument("--clone", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clone is None:
        with tempfile.TemporaryDirectory(prefix="walk-") as folder:
            clone = Path(folder) / "aura-serve"
            prepare(clone)
            words = [sys.executable, "-u", __file__, "--clone", str(clone)]
            words += ["--key"] if options.key else []
            if options.offline:
                inside = shlex.join([*words, "--offline"])
                words = ["unshare", "--net", "bash", "-c", f"ip link set lo up && exec {inside}"]
            return subprocess.run(words).returncode
    walk = Walk(options.clone, options.key, options.offline)
    for page in PAGES:
        if (ROOT / page).exists():
            walk.page(page)
    walk.stop()
    print(f"\n{walk.failures} commands failed")
    return min(walk.failures, 1)


if __name__ == "__main__":
    sys.exit(main())
