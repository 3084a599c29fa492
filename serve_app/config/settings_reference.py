"""The table of all settings for the documentation, made from `Settings` itself."""

import sys
from pathlib import Path
from typing import Any

from serve_app.config.deprecated_names import SETTINGS as DEPRECATED
from serve_app.config.settings import VARIABLES, Settings

_HEADER = ("Setting", "Type", "Default", "Range", "Meaning", "Old name")
_BEGIN, _END = "<!-- settings: begin -->\n", "<!-- settings: end -->"
_TYPES = {
    "integer": "integer",
    "number": "number",
    "boolean": "0 or 1",
    "array": "list",
    "string": "text",
}


def markdown_table() -> str:
    """Return a Markdown table with one row per setting, in the order of `Settings`.

    The columns are name, type, default, range, meaning, and the deprecated name if there is one.
    Every current name is also understood with the prefix AURA_.
    """
    properties = Settings.model_json_schema()["properties"]
    rows = [_HEADER, ("---",) * len(_HEADER)]
    rows += [_row(variable, properties[field]) for variable, field in VARIABLES.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def with_table(page: str) -> str:
    """Return a page with the table that stands between its two markers made anew."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{markdown_table()}{_END}{after}"


def _row(variable: str, schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a setting from its JSON schema."""
    value = next((option for option in schema.get("anyOf", ()) if option["type"] != "null"), schema)
    old = next((old for old, new in DEPRECATED.items() if new == variable), "")
    return (
        f"`{variable}`",
        "path" if value.get("format") == "path" else _TYPES[value["type"]],
        _default(schema.get("default")),
        _range(value),
        schema["description"].replace("|", r"\|"),
        f"`{old}`" if old else "",
    )


def _default(value: Any) -> str:
    match value:
        case None | [] | ():
            return "empty"
        case bool():
            return f"`{int(value)}`"
        case _:
            return f"`{value}`"


def _range(schema: dict[str, Any]) -> str:
    match schema:
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"minimum": low, "maximum": high}:
            return f"{low} to {high}"
        case {"minimum": low}:
            return f"at least {low}"
        case {"exclusiveMinimum": low}:
            return f"above {low}"
        case _:
            return ""


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_table(file.read_text()))
