"""Which fields of a body ask for something, by their names on the wire."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel


def stated_fields(body: BaseModel, names: Iterable[str], parent: str = "") -> tuple[str, ...]:
    """Return those of the named attributes that a body has and that ask for something.

    Null, false, empty values and a field's own default ask for nothing. `parent` stands before the
    name of each field, as `config.` does for those of a nested form.
    """
    fields = type(body).model_fields
    return tuple(
        parent + (fields[name].alias or name)
        for name in names
        if name in fields and _asks(getattr(body, name), fields[name].default)
    )


def _asks(value: Any, default: Any) -> bool:
    return not (value is None or value is False or value in ("", []) or value == default)
