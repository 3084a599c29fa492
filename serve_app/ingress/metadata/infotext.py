"""The text that AUTOMATIC1111 and most tools write under an image, read back into its fields."""

import json
import re

MAX_INFOTEXT_CHARS = 100_000
_MAX_SETTINGS_CHARS = 10_000  # of their line; a longer one belongs to a prompt
_SETTING = re.compile(r'(\w[\w \-/]{0,80}):("(?:\\.|[^\\"])*"| "(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_MIN_SETTINGS = 3  # on the line of the settings; a shorter one belongs to a prompt
_NEGATIVE = "Negative prompt:"


def read_infotext(text: str) -> dict[str, str]:
    """Return the fields of a text by the web UI's names, with "Prompt" and "Negative prompt".

    A text without a line of settings is a prompt alone.
    """
    lines = text[:MAX_INFOTEXT_CHARS].strip().split("\n")
    settings = _SETTING.findall(lines[-1]) if len(lines[-1]) <= _MAX_SETTINGS_CHARS else []
    if len(settings) < _MIN_SETTINGS:
        settings = []
    else:
        lines.pop()
    prompt, negative, parts = [], [], lines
    for number, line in enumerate(parts):
        if line.startswith(_NEGATIVE):
            negative = [line.removeprefix(_NEGATIVE).strip(), *parts[number + 1 :]]
            break
        prompt.append(line)
    fields = {name.strip(): _unquoted(value) for name, value in settings}
    return {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative), **fields}


def _unquoted(value: str) -> str:
    value = value.strip()
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
