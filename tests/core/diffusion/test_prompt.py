from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.diffusion.prompt import (
    CHUNK_TOKENS,
    WEIGHT_RANGE,
    Token,
    WeightedText,
    chunk_tokens,
    clamp_weight,
    parse,
    strip_markup,
)

COMMA = 7
marked = st.lists(st.sampled_from([*"ab ,:.019+-\\()[]", " BREAK "])).map("".join) | st.text()
tokens = st.lists(st.tuples(st.integers(0, 20), st.just(1.0)), max_size=400)


def phrases(prompt: str) -> list[tuple[str, Any]]:
    """Return the phrases of a prompt that has one section."""
    (section,) = parse(prompt)
    return [(phrase.text, pytest.approx(phrase.weight)) for phrase in section]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox", [("a fox", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("((a))", [("a", 1.21)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a: .5 )", [("a", 0.5)]),
        ("(a:2.)", [("a", 2)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:+1.2)", [("a", 1.2)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a (b:1.5):0.5)", [("a ", 0.5), ("b", 0.75)]),
        ("[(a)]", [("a", 1)]),
        ("[a:0.5]", [("a:0.5", 1 / 1.1)]),
        ("(a [b) c] d", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1), (" d", 1)]),
        (r"\(a\) \[b\] \\ ", [("(a) [b] \\ ", 1)]),
        (r"a\|b (c\:1.5)", [("a|b ", 1), ("c:1.5", 1.1)]),
        (r"(a \(b\):1.5)", [("a (b)", 1.5)]),
        ("()", []),
        ("", []),
    ],
)
def test_a_group_has_the_weight_it_states(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert phrases(prompt) == expected


def test_the_example_in_automatic1111_s_parser() -> None:
    assert phrases("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).") == [
        ("a ", 1),
        ("house", 1.3 * 1.1 * 1.1),
        (" ", 1.1),
        ("on", 1),
        (" a ", 1.1),
        ("hill", 0.5 * 1.1),
        (", sun, ", 1.1),
        ("sky", 1.1**4),
        (".", 1.1),
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a) b] :) c:1.3)", [("a) b] :) c:1.3)", 1)]),
        ("a (b", [("a ", 1), ("b", 1.1)]),
        ("[a", [("a", 1 / 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:x)", [("a:x", 1.1)]),
        ("(a:1.3", [("a:1.3", 1.1)]),
        ("a \\n b\\", [("a \\n b\\", 1)]),
    ],
)
def test_malformed_markup_is_text(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert phrases(prompt) == expected


def test_a_group_of_weight_one_is_the_text_inside() -> None:
    assert parse("a (red:1.0) circ(le:1)") == parse("a red circle")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a BREAK b", ["a ", " b"]),
        ("a\nBREAK\nb", ["a\n", "\nb"]),
        ("BREAK a", ["", " a"]),
        ("a BREAK", ["a ", ""]),
        ("a,BREAK,b", ["a,", ",b"]),
        ("a break BREAKS outBREAK _BREAK", ["a break BREAKS outBREAK _BREAK"]),
    ],
)
def test_the_word_break_splits_sections(prompt: str, expected: list[str]) -> None:
    sections = ["".join(phrase.text for phrase in section) for section in parse(prompt)]
    assert sections == expected


def test_a_group_continues_after_a_break() -> None:
    assert parse("(a BREAK b:1.5) c") == (
        (WeightedText("a ", 1.5),),
        (WeightedText(" b", 1.5), WeightedText(" c")),
    )


@given(st.text().filter(lambda text: not set(text) & set(r"\()[]:") and "BREAK" not in text))
def test_text_without_markup_is_one_phrase(text: str) -> None:
    assert parse(text) == ((WeightedText(text),) if text else (),)


@given(marked)
def test_every_text_parses_and_gains_no_letter(prompt: str) -> None:
    sections = parse(prompt)
    assert all(phrase.text for section in sections for phrase in section)
    for section in sections:
        weights = [phrase.weight for phrase in section]
        assert all(weight != following for weight, following in pairwise(weights))
    letters = iter(prompt)
    assert all(letter in letters for letter in strip_markup(prompt).replace(" ", ""))


def test_strip_markup_leaves_the_text() -> None:
    assert strip_markup(r"a (re(d:1.2)) \(circle\) BREAK [blue] :)") == "a red (circle)   blue :)"


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(-1, 0), (0, 0), (0.3, 0.3), (1, 1), (2, 2), (2.1, 2), (float("inf"), 2), (float("nan"), 0)],
)
def test_a_weight_is_clamped_to_its_range(weight: float, expected: float) -> None:
    assert clamp_weight(weight) == expected


@pytest.mark.parametrize("depth", [1, 7, 100, 3000])
def test_the_weight_of_nested_groups_is_clamped_too(depth: int) -> None:
    ((phrase,),) = parse("(" * depth + "a" + ":9)" * depth)
    assert clamp_weight(phrase.weight) == WEIGHT_RANGE[1]
    ((phrase,),) = parse("((a:0):" + "9" * 400 + ")")
    assert clamp_weight(phrase.weight) == WEIGHT_RANGE[0]


def numbered(*numbers: int) -> list[Token]:
    return [(number, 1.0) for number in numbers]


def words(count: int) -> list[Token]:
    return numbered(*[1] * count)


def sizes(*sections: list[Token]) -> list[int]:
    return [len(chunk) for chunk in chunk_tokens(sections, COMMA)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, [0]), (1, [1]), (75, [75]), (76, [75, 1]), (150, [75, 75]), (190, [75, 75, 40])],
)
def test_a_chunk_has_seventy_five_tokens(count: int, expected: list[int]) -> None:
    assert sizes(words(count)) == expected


def test_a_section_starts_a_chunk() -> None:
    assert sizes(words(3), words(80), words(75), words(1)) == [3, 75, 5, 75, 1]


def test_an_empty_section_is_a_chunk_unless_it_is_the_last() -> None:
    assert sizes([], words(1), [], words(1), []) == [0, 1, 0, 1]
    assert sizes([], []) == [0]


def comma_at(index: int, following: int) -> list[Token]:
    """Return `index` words, a comma, and then the number of following words."""
    return [*words(index), (COMMA, 1.0), *words(following)]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (comma_at(60, 14), [75]),
        (comma_at(60, 15), [61, 15]),
        (comma_at(55, 20), [56, 20]),
        (comma_at(54, 21), [75, 1]),
        (comma_at(74, 3), [75, 3]),
        (comma_at(75, 3), [75, 4]),
        ([*comma_at(60, 14), (COMMA, 1.0), *words(2)], [75, 3]),
        ([*comma_at(60, 4), *comma_at(5, 4), *words(9)], [71, 13]),
    ],
    ids=["fits", "split", "near", "far", "at the end", "after it", "ends there", "the last of two"],
)
def test_a_phrase_after_a_late_comma_stays_whole(section: list[Token], expected: list[int]) -> None:
    assert sizes(section) == expected


def test_without_a_comma_token_every_chunk_is_full() -> None:
    assert [len(chunk) for chunk in chunk_tokens([comma_at(60, 15)], None)] == [75, 1]


@given(st.lists(tokens, min_size=1, max_size=4))
def test_chunks_have_every_token_once_and_in_order(sections: list[list[Token]]) -> None:
    chunks = chunk_tokens(sections, COMMA)
    assert [token for chunk in chunks for token in chunk] == [t for s in sections for t in s]
    assert chunks
    assert all(len(chunk) <= CHUNK_TOKENS for chunk in chunks)
