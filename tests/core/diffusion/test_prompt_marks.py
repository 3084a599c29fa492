import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.diffusion.prompt_marks import PromptTag, changes_tags, mark_warnings, read_tags

MALFORMED = "its colons, bars or brackets are not in their places"


@pytest.mark.parametrize(
    ("prompt", "mark", "reason"),
    [
        ("a [cat:dog:fox:0.5]", "[from:to:when]", MALFORMED),
        ("a [(cat:dog:fox) owl:hen:0.5]", "[from:to:when]", MALFORMED),
        ("a [cat|dog:fox]", "[a|b]", MALFORMED),
        ("a {red|blue} cat", "{a|b}", "nothing is chosen at random"),
        ("a {2$$red|blue} cat", "{a|b}", "nothing is chosen at random"),
        ("a cat AND a dog", "AND", "prompts are not combined"),
        ("a cat :1.2\nAND a dog :0.8", "AND", "prompts are not combined"),
        ("a __colour__ cat", "__name__", "there are no wildcard files"),
        ("a __animals/cat*__", "__name__", "there are no wildcard files"),
        ("a cat, embedding:easynegative", "embedding:name", "there are no textual inversions"),
        ("(embedding:bad-hands:1.2)", "embedding:name", "there are no textual inversions"),
        ("a <wildcard:animal>", "<name:…>", "only <lora:…> and <lyco:…> are known"),
        ("a <fromto[0.5]:cat,dog>", "<name:…>", "only <lora:…> and <lyco:…> are known"),
        (
            "a cat ADDCOMM a dog",
            "ADDCOMM, ADDCOL and the like",
            "there are no regions with prompts of their own",
        ),
        ("a cat --ar 3:2", "--option", "sizes, seeds and the like are fields of the request"),
        ("a cat::2 dog", "text::2", "weights are written (text:1.3)"),
        ("a (red)1.3 cat", "(text)1.3", "weights are written (text:1.3)"),
        (
            '("a cat", "a dog").blend(0.5, 0.5)',
            "(…).and(), .blend() and .swap()",
            "prompts are not combined",
        ),
    ],
)
def test_every_mark_of_another_tool_is_named(prompt: str, mark: str, reason: str) -> None:
    assert mark_warnings(prompt, "prompt") == (f"{mark} in the prompt is read as text: {reason}",)


def test_each_kind_of_mark_is_named_once_and_by_the_prompt_it_is_in() -> None:
    warnings = mark_warnings("[a|b:c] AND [d|e:f] {g|h} and [i:j:k:1]", "negative prompt")
    assert [warning.split(" is read")[0] for warning in warnings] == [
        f"{mark} in the negative prompt" for mark in ("[from:to:when]", "[a|b]", "{a|b}", "AND")
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        "a [cat:dog:0.5]",
        "a [cat:0.5] [cat::12]",
        "a [(red:1.2) cat:dog: .25 ] [1girl:2girls:10]",
        "a [cat|dog] and [(red)|blue|] birds",
        r"a [cat\|dog] and [cat\:dog:0.5]",
        "a cat and a dog, HANDS, SAND, a BRAND new day",
        "AND so it goes",
        "A CAT AND A DOG",
        "R AND B",
        "a clock at 5:30, [at 5:30], [16:9], [10:30:45]",
        r"\[cat:dog:0.5\] and \[a\|b\] \{a|b\}",
        "(a:1.2) [b] ((c)) [[d]] (e BREAK f)",
        "a [cat: a dog] and (cat|dog)",
        "a face [sad :|] and {happy :)}",
        "a face :| and :[ and ]: and }",
        "(a [b) c]",
        "[a smile :) 1.5]",
        "i <3 you: a > b < c: d",
        "some_snake_case and _underscored_ and ____",
        "C++ and std::vector, a -- b, pre--cut",
        "embedding: a study; the word embedding",
        "a (cat)2 and (see 1.3)",
        "",
    ],
)
def test_ordinary_text_gives_no_warning(prompt: str) -> None:
    assert mark_warnings(prompt, "prompt") == ()


ORDINARY = [
    *("a cat", "5:30", "note: a fox", "HANDS", "SAND", "and", "BREAK", "1.5", ":)", ":(", ":|"),
    *("16:9", "(", ")", "[", "]", "{", "}", "(a:1.2)", "\\(", "C++", "<3", "_", "-", ",", "."),
]


@given(st.lists(st.sampled_from(ORDINARY)).map(" ".join))
def test_ordinary_pieces_in_any_order_give_no_warning(prompt: str) -> None:
    assert mark_warnings(prompt, "prompt") == ()


@given(st.text() | st.lists(st.sampled_from([*"ab:|[]{}()<>_\\ 05.", " AND "])).map("".join))
def test_any_text_can_be_read(prompt: str) -> None:
    assert len(set(mark_warnings(prompt, "prompt"))) == len(mark_warnings(prompt, "prompt"))
    text, tags = read_tags(prompt)
    assert tags or text == prompt


@pytest.mark.parametrize("prompt", ["a [cat AND dog:owl:0.5]", "a [owl|cat AND dog]"])
def test_marks_in_a_text_that_changes_are_named(prompt: str) -> None:
    assert mark_warnings(prompt, "prompt") == (
        "AND in the prompt is read as text: prompts are not combined",
    )


@pytest.mark.parametrize(
    ("prompt", "changes"),
    [
        ("[a <lora:ink:1>:b:0.5]", True),
        ("[<lora:ink:1>::0.5] <lora:gold:1>", True),
        ("<lora:ink> [<lyco:gold:1>|a]", True),
        ("[a:b:0.5] <lora:ink:1>", False),
        ("[a <lora:ink:1>] (b:1.2)", False),
        ("[a:b:0.5]", False),
    ],
)
def test_tags_in_a_text_that_changes_are_found(prompt: str, changes: bool) -> None:
    assert changes_tags(prompt) is changes


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a fox <lora:ink:0.8>", "a fox", [("lora", "ink", 0.8, True)]),
        ("<lyco:ink:-1> a fox", "a fox", [("lyco", "ink", -1, True)]),
        ("a <LoRA: ink > fox", "a  fox", [("lora", "ink", None, True)]),
        ("a fox<lora:ink:0.8:0.5>", "a fox", [("lora", "ink", 0.8, False)]),
        ("a fox <lora:ink:te=1>", "a fox", [("lora", "ink", None, False)]),
        ("a fox <hypernet:ink:1>", "a fox", [("hypernet", "ink", 1, True)]),
        (
            "<lora:a:1><lora:b:.5>a fox",
            "a fox",
            [("lora", "a", 1, True), ("lora", "b", 0.5, True)],
        ),
        (" a fox <lora ink> ", " a fox <lora ink> ", []),
    ],
)
def test_tags_of_loras_are_read(
    prompt: str, text: str, tags: list[tuple[str, str, float | None, bool]]
) -> None:
    assert read_tags(prompt) == (text, tuple(PromptTag(*tag) for tag in tags))
    assert all(tag.is_lora == (tag.kind != "hypernet") for tag in read_tags(prompt)[1])
