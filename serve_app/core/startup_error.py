"""Carry an error of start-up through Ray Serve, which passes on the text of an exception alone.

The text has a line for people and a line of JSON with the error's fields, so that nothing has to
parse the sentence.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from serve_app.core.errors import AuraError, OperatorError

_PREFIX = "aura-error: "


class StartupFailure(AuraError):
    """A replica could not start, and the settings and files need not be the reason."""


@contextmanager
def startup_errors(where: str) -> Iterator[None]:
    """Turn any error into a `RuntimeError` whose text carries its fields.

    `where` names what starts. An error without a name becomes its class and its first line.
    """
    try:
        yield
    except Exception as error:
        named = error if isinstance(error, AuraError) else _named(error, where)
        fields = {
            "code": named.code,
            "problem": named.problem,
            "subject": named.subject,
            "remedy": named.remedy,
            "isOperators": isinstance(named, OperatorError),
        }
        raise RuntimeError(f"{named}\n{_PREFIX}{json.dumps(fields)}") from error


def read_startup_error(text: str) -> OperatorError | StartupFailure | None:
    """Return the last error that a status message of Serve carries, or None if it has none.

    It is an `OperatorError` if a setting or a file is wrong, so that another try can't help.
    """
    for line in reversed(text.splitlines()):
        if line.startswith(_PREFIX):
            try:
                fields = json.loads(line.removeprefix(_PREFIX))
            except ValueError:  # cut off on its way
                continue
            kind = OperatorError if fields["isOperators"] else StartupFailure
            error = kind(fields["problem"], subject=fields["subject"], remedy=fields["remedy"])
            error.code = fields["code"]
            return error
    return None


def startup_failure(messages: Iterable[tuple[str, str]]) -> OperatorError | StartupFailure:
    """Return why an application could not start, from what Serve says of each part of it.

    A part is a name and a message, the most specific first. Where no message carries an error, as
    when a process was killed, it is the last line of the first message that has any text.
    """
    parts = [(name, message.strip()) for name, message in messages if message.strip()]
    for _, message in parts:
        if error := read_startup_error(message):
            return error
    name, message = parts[0] if parts else ("the application", "no reason is known")
    return StartupFailure(f"could not start: {message.splitlines()[-1].strip()}", subject=name)


def _named(error: Exception, where: str) -> StartupFailure:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return StartupFailure(f"could not start: {reason}", subject=where)
