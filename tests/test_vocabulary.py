"""Names are the field's words: the private dialect of earlier days stays out."""

import pytest

from tests.vocabulary import NEVER, banned_in, count


@pytest.mark.parametrize("folder", ["serve_app", "tests"])
def test_no_banned_word_is_an_identifier(folder: str) -> None:
    assert count(folder) == {}


@pytest.mark.parametrize("word", sorted(NEVER))
def test_a_banned_word_is_found_wherever_it_names_something(word: str) -> None:
    source = f"def {word}({word}): {word} = {word}.{word}"
    assert banned_in(source)[word] == 5


def test_words_that_only_contain_a_banned_word_are_free() -> None:
    assert not banned_in("threshold = lookup(household, someone, heretic)")
    assert banned_in("last_asked = retold = Unsaid")["asked"] == 1
