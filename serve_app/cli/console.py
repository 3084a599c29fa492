"""The terminal: one console, how an error looks, and the exit codes of all commands."""

from rich.console import Console
from rich.markup import escape

from serve_app.core.errors import AuraError

OK = 0
FAILED = 1  # the command ran, and what it checked or started failed
REFUSED = 2  # the command did not run: its options, the settings or the files are wrong
LOST = 3  # the service was stopped, and requests that it had accepted are lost
INTERRUPTED = 130  # Ctrl-C, as shells have it: 128 + SIGINT

console = Console(stderr=True, highlight=False)


def print_error(error: Exception) -> None:
    """Print an error in one line: what is wrong, with what, and what to do about it."""
    if isinstance(error, AuraError):
        text, remedy = escape(error.problem), escape(error.remedy)
        if error.subject:
            text = f"[bold]{escape(error.subject)}[/] {text}"
        if remedy:
            text = f"{text}. {remedy}"
    else:
        text = escape(str(error).strip() or type(error).__name__)
    console.print(f"[bold red]error[/] {text}", soft_wrap=True)


def print_warning(text: str) -> None:
    """Print a warning in one line."""
    console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
