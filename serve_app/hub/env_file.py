"""Write variables to .env.local without touching anything else in it.

The file must work with `export $(grep -v '^#' .env.local | xargs)`, so a value may not contain
characters that a shell interprets.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from serve_app.core.errors import SettingsError

_SAFE = re.compile(r"[\w./+:@%,-]+")


def with_variables(content: bytes, values: Mapping[str, str]) -> bytes:
    """Return the content with each variable set: its lines replaced, or one line appended.

    Where there is no line but a commented-out one, as in the template (`#NAME=`), that is replaced.
    Other comments, all other lines and the line endings stay byte for byte.
    """
    for name, value in values.items():
        content = _with_variable(content, name.encode(), value.encode())
    return content


def write(file: Path, example: Path, values: Mapping[str, str]) -> None:
    """Set variables in `file`, which is created from `example` if it does not exist.

    The file is written in place, so a symbolic link stays one and permissions stay. Raises
    `OSError`.
    """
    previous = file.read_bytes() if file.exists() else None
    content = previous
    if content is None:
        content = example.read_bytes() if example.exists() else b""
    content = with_variables(content, values)
    if content != previous:
        file.write_bytes(content)


def path_value(folder: Path) -> str:
    """Return a folder as a value for .env.local; a relative one as ./….

    Raises `SettingsError` for characters that a shell interprets.
    """
    text = folder.as_posix()
    if not folder.is_absolute() and not text.startswith(".."):
        text = f"./{text}"
    if not _SAFE.fullmatch(text):
        raise SettingsError(
            "can't be written to .env.local: only letters, digits and ./_-+:@%, are allowed in it, "
            "no spaces and no quotes",
            subject=f"the folder {text}",
            remedy="Choose another one with --folder",
        )
    return text


def _with_variable(content: bytes, name: bytes, value: bytes) -> bytes:
    lines = re.compile(rb"^([ \t]*(?:export[ \t]+)?%b)[ \t]*=[^\r\n]*" % name, re.MULTILINE)
    content, replaced = lines.subn(lambda match: match[1] + b"=" + value, content)
    if replaced:
        return content
    disabled = re.compile(rb"^#%b=[^\r\n]*" % name, re.MULTILINE)
    content, replaced = disabled.subn(lambda match: name + b"=" + value, content, count=1)
    if replaced:
        return content
    end = b"\r\n" if b"\r\n" in content else b"\n"
    gap = b"" if not content or content.endswith(b"\n") else end
    return content + gap + name + b"=" + value + end
