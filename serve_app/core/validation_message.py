"""One clause for an error that pydantic found, in the words of our own errors: "must be ...".

No pydantic: an error arrives as the mapping that `ValidationError.errors()` gives.
"""

import re
from collections.abc import Mapping
from typing import Any

_TEMPLATES = {  # by the type of the error; filled in from its context
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be 1 or 0, or true or false",
    "string_type": "must be a string",
    "string_pattern_mismatch": "must match {pattern}",
    "model_type": "must be a section with keys",
    "dict_type": "must be a section with keys",
    "list_type": "must be a list",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "none_required": "must be null",
    "missing": "is missing",
    "extra_forbidden": "is unknown",
}
_LENGTHS = {  # of what: one, and several
    "string_too_short": ("character", "characters"),
    "string_too_long": ("character", "characters"),
    "too_short": ("entry", "entries"),
    "too_long": ("entry", "entries"),
}
_OPENING = re.compile(r"^(Input|Value|[A-Z]\w+) should (?=(be|have|match|contain|start|end)\b)")


def validation_message(error: Mapping[str, Any]) -> str:
    """Return what is wrong, for one entry of `ValidationError.errors()`.

    An entry of the type `value_error` keeps the exception that a validator raised; its text is the
    message as we wrote it. Types without a template keep what pydantic says of the value.
    """
    kind = error["type"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind in _LENGTHS:
        return _length_message(error["ctx"], *_LENGTHS[kind])
    template = _TEMPLATES.get(kind)
    if template is None:
        return _OPENING.sub("must ", str(error["msg"]))
    return template.format_map({key: _plain(value) for key, value in error.get("ctx", {}).items()})


def _length_message(context: Mapping[str, Any], singular: str, plural: str) -> str:
    least, most = context.get("min_length"), context.get("max_length")
    if least == 1 and singular == "character":
        return "must not be empty"
    bound, count = ("least", least) if most is None else ("most", most)
    return f"must have at {bound} {count} {singular if count == 1 else plural}"


def _plain(value: Any) -> Any:
    """Return a whole float as an integer: pydantic turns the bounds of a float into floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
