"""The known name that a misspelt one is closest to, for every "did you mean" of the project."""

from collections.abc import Iterable
from difflib import get_close_matches

PLAUSIBLE = 0.65  # for a name that is certainly wrong: a bad suggestion costs the reader little
NEARLY_EQUAL = 0.86  # for a name that may belong to another program: a match makes it an error


def suggest(name: str, known: Iterable[str], *, similarity: float = PLAUSIBLE) -> str | None:
    """Return the most similar known name, or None if none is similar enough.

    Similarity is the ratio of `difflib.SequenceMatcher`, from 0 to 1.
    """
    matches = get_close_matches(name, list(known), n=1, cutoff=similarity)
    return matches[0] if matches else None
