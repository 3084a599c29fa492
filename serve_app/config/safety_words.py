"""The file of SAFETY_WORDS_FILE: what no prompt may contain."""

from pathlib import Path

from serve_app.core.errors import SettingsError

_VARIABLE = "SAFETY_WORDS_FILE"


def read_words(file: Path) -> tuple[str, ...]:
    """Return the words and phrases of a file: one per line; # begins a comment.

    Raises `SettingsError` if the file can't be read or has no words.
    """
    subject = f"{_VARIABLE}={file}"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"can't be read: {reason}", _VARIABLE, subject=subject) from None
    words = tuple(w for w in (line.partition("#")[0].strip() for line in lines) if w)
    if not words:
        raise SettingsError(
            "contains no words",
            _VARIABLE,
            subject=subject,
            remedy="Write one per line, or empty the setting to have no filter",
        )
    return words
