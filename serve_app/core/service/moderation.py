"""What may refuse a picture, and the plainest filter: a list of words.

Knows no files and no networks. A filter is asked twice: with the prompt before anything is made,
and with the pixels after; each answers what it can judge.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Protocol

from serve_app.core.diffusion.prompt import strip_markup

_FILLERS = "\u115f\u1160\u3164\uffa0"  # letters by their category, and blank
_LETTER = r"[^\W\d_]"


class SafetyFilter(Protocol):
    """The contract of a safety filter. Off unless the operator sets one."""

    @property
    def name(self) -> str:
        """How /health calls it."""

    def refuses_prompt(self, prompt: str) -> bool:
        """Whether no picture may be made of this prompt."""

    def refuses_image(self, image: Any) -> bool:
        """Whether this picture, (height, width, 3) bytes, may not be handed out."""


class WordList:
    """Refuses prompts that hold a listed word or phrase as whole words.

    Case, accents, look-alike forms of a letter (full-width, ligatures) and characters that can't be
    seen make no difference; digits and underscores end a word, as tags have them. Brackets and
    weights in a word hide nothing: what they leave to be drawn is looked at too.
    """

    name = "words"

    def __init__(self, words: Iterable[str]) -> None:
        folded = [_folded(word).split() for word in words]
        phrases = sorted({r"[\s_]+".join(map(re.escape, parts)) for parts in folded if parts})
        either = "|".join(phrases)
        whole = rf"(?<!{_LETTER})(?:{either})(?!{_LETTER})"
        self._pattern = re.compile(whole) if phrases else None

    def refuses_prompt(self, prompt: str) -> bool:
        """See `SafetyFilter`."""
        if self._pattern is None:
            return False
        texts = (_folded(prompt), _folded(strip_markup(prompt)))
        return any(self._pattern.search(text) is not None for text in texts)

    def refuses_image(self, image: Any) -> bool:
        """Never: a list of words knows nothing of pixels."""
        return False


def _folded(text: str) -> str:
    apart = unicodedata.normalize("NFKD", text)
    return "".join(c for c in apart if not _is_unseen(c)).casefold()


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me", "Cf") or character in _FILLERS
