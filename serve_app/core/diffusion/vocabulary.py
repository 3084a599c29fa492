"""`Vocabulary`: the words that a model was trained on, where they are few.

A model draws something for every prompt, so a prompt of words that it never met deserves a warning.
"""

import re
import unicodedata
from dataclasses import dataclass

_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of a model, without accents and in lower case, and what it draws as a phrase.

    `subjects` are what an image can show, as singulars; `scenery` is what fills an image where it
    names no subject, such as the colour of a background; `others` are the rest of its language.
    """

    subjects: tuple[str, ...]
    scenery: frozenset[str]
    others: frozenset[str]
    summary: str

    def covers(self, prompt: str) -> bool:
        """Return whether a prompt names something that the model can draw.

        A subject is enough, in whatever company. Scenery is not, beside a word that is unknown: a
        cat on a red background is no red background.
        """
        text = fold(prompt)
        if self._subject.search(text):
            return True
        words = set(_WORD.findall(text))
        return bool(words & self.scenery) and words <= self.scenery | self.others

    @property
    def _subject(self) -> re.Pattern[str]:
        """A pattern of every subject, also as a plural of English or Spanish."""
        forms = (
            f"{subject[:-1]}(?:z|ces)" if subject.endswith("z") else f"{subject}(?:e?s)?"
            for subject in self.subjects
        )
        return re.compile(rf"\b(?:{'|'.join(forms)})\b")


def fold(text: str) -> str:
    """Return the text in lower case and without accents."""
    letters = unicodedata.normalize("NFKD", text.lower())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def words_of(text: str) -> frozenset[str]:
    """Return the folded words of a text."""
    return frozenset(_WORD.findall(fold(text)))
