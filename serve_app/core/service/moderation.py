"""The contracts of safety filters, and the simplest filter: a word list.

No files and no networks. A `PromptFilter` judges before anything is made, an `ImageFilter`
afterwards.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Protocol

from serve_app.core.diffusion.prompt import strip_markup
from serve_app.core.errors import SafetyBlock

WORD_FILTER = "words"  # the filters' names in /health
IMAGE_FILTER = "images"
_FILLERS = "\u115f\u1160\u3164\uffa0"  # blank, though Unicode calls them letters
_LETTER = r"[^\W\d_]"


class PromptFilter(Protocol):
    """The contract of a filter of prompts. Off unless the operator sets one."""

    def refuses_prompt(self, prompt: str) -> bool:
        """Return whether this prompt is refused."""


class ImageFilter(Protocol):
    """The contract of a filter of finished images. Off unless the operator sets one."""

    def refuses_image(self, image: Any) -> bool:
        """Return whether this image, (height, width, 3) bytes, is refused."""


class WordList:
    """Refuses prompts that contain a listed word or phrase as whole words.

    Case, accents, compatibility forms of a letter (full-width, ligatures) and invisible characters
    make no difference. Digits and underscores end a word, as in tags. Brackets and weights inside a
    word hide nothing: the prompt is also checked without its markup.
    """

    def __init__(self, words: Iterable[str]) -> None:
        folded = [_folded(word).split() for word in words]
        phrases = sorted({r"[\s_]+".join(map(re.escape, parts)) for parts in folded if parts})
        any_phrase = "|".join(phrases)
        whole_words = rf"(?<!{_LETTER})(?:{any_phrase})(?!{_LETTER})"
        self._pattern = re.compile(whole_words) if phrases else None

    def refuses_prompt(self, prompt: str) -> bool:
        """See `PromptFilter`."""
        if self._pattern is None:
            return False
        texts = (_folded(prompt), _folded(strip_markup(prompt)))
        return any(self._pattern.search(text) is not None for text in texts)


def check_prompts(filter: PromptFilter | None, prompts: Iterable[str]) -> None:
    """Check prompts with a filter, if there is one. Raises `SafetyBlock` if it refuses one."""
    if filter and any(filter.refuses_prompt(prompt) for prompt in prompts):
        raise SafetyBlock("the safety filter refuses this prompt")


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not _is_invisible(c)).casefold()


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me", "Cf") or character in _FILLERS
