"""Variables written into .env.local, and nothing else in it touched.

Knows nothing of what the variables mean. The file must go on working with
`export $(grep -v '^#' .env.local | xargs)`, so a value has no character that a shell would read.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from serve_app.core.errors import SettingsError

_SAFE = re.compile(r"[\w./+:@%,-]+")


def edited(content: bytes, values: Mapping[str, str]) -> bytes:
    """The content with these variables set: every line of theirs replaced, or one appended.

    Comments and all other lines stay byte for byte, line endings too.
    """
    for name, value in values.items():
        content = _set(content, name.encode(), value.encode())
    return content


def write(file: Path, example: Path, values: Mapping[str, str]) -> None:
    """The variables stand in `file`, made from `example` where it was not there.

    Written in place, so that a link stays a link and its permissions stay. Raises `OSError`.
    """
    before = file.read_bytes() if file.exists() else None
    start = before if before is not None else example.read_bytes() if example.exists() else b""
    after = edited(start, values)
    if after != before:
        file.write_bytes(after)


def _set(content: bytes, name: bytes, value: bytes) -> bytes:
    own = re.compile(rb"^([ \t]*(?:export[ \t]+)?%b)[ \t]*=[^\r\n]*" % name, re.MULTILINE)
    content, found = own.subn(lambda match: match[1] + b"=" + value, content)
    if found:
        return content
    end = b"\r\n" if b"\r\n" in content else b"\n"
    gap = b"" if not content or content.endswith(b"\n") else end
    return content + gap + name + b"=" + value + end


def as_value(folder: Path) -> str:
    """A folder as a value: ./models/… for a relative one. Raises `SettingsError`."""
    text = folder.as_posix()
    if not folder.is_absolute() and not text.startswith(".."):
        text = f"./{text}"
    if not _SAFE.fullmatch(text):
        raise SettingsError(
            f"--folder: {text} can't stand in .env.local, whose values have letters, digits and "
            "./_-+:@%, only: no spaces, no quotes. Choose another with --folder"
        )
    return text
