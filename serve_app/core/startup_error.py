"""Carry an error of start-up through Ray Serve, which passes on the text of an exception alone.

The text has a line for people and a line of JSON with the error's fields, so that nothing has to
parse the sentence.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.core.errors import AuraError, OperatorError

_PREFIX = "aura-error: "


@contextmanager
def startup_errors() -> Iterator[None]:
    """Turn an `AuraError` into a `RuntimeError` whose text carries its fields."""
    try:
        yield
    except AuraError as error:
        fields = {
            "code": error.code,
            "problem": error.problem,
            "subject": error.subject,
            "remedy": error.remedy,
        }
        raise RuntimeError(f"{error}\n{_PREFIX}{json.dumps(fields)}") from error


def read_startup_error(text: str) -> OperatorError | None:
    """Return the last error that a status message of Serve carries, or None if it has none."""
    for line in reversed(text.splitlines()):
        if line.startswith(_PREFIX):
            try:
                fields = json.loads(line.removeprefix(_PREFIX))
            except ValueError:  # cut off on its way
                continue
            error = OperatorError(
                fields["problem"], subject=fields["subject"], remedy=fields["remedy"]
            )
            error.code = fields["code"]
            return error
    return None
