import pytest

from serve_app.core.errors import SafetyBlock
from serve_app.core.service.moderation import WordList, check_prompts

LIST = WordList(["gore", "Straße", "blood   bath", "c++", "", "  "])


@pytest.mark.parametrize(
    "prompt",
    [
        "gore",
        "much GORE here",
        "göré",
        "\uff47\uff4f\uff52\uff45",
        "(gore)",
        "a STRASSE",
        "a blood\nbath",
        "in C++ style",
        "gore_scene, 8k",
        "gore2",
        "g\u200bore",
        "go\u00adre",
        "go\ufe0fre",
        "go\u034fre",
        "go\U000e0100re",
        "go\u3164re",
        "blood_bath",
        "go(re:1.0)",
        "[g]((ore))",
        "blood BREAK bath",
    ],
)
def test_a_listed_word_is_refused_however_it_is_written(prompt: str) -> None:
    assert LIST.refuses_prompt(prompt)


@pytest.mark.parametrize("prompt", ["gorey", "category", "blood and a bath", "a fox", "", "c+"])
def test_other_words_are_not(prompt: str) -> None:
    assert not LIST.refuses_prompt(prompt)


def test_an_empty_list_refuses_nothing_and_no_list_refuses_a_picture() -> None:
    assert not WordList([]).refuses_prompt("gore")


def test_one_refused_prompt_refuses_them_all() -> None:
    check_prompts(None, ["gore"])
    check_prompts(LIST, ["a quiet lake", "a hill"])
    with pytest.raises(SafetyBlock, match="the safety filter refuses this prompt"):
        check_prompts(LIST, ["a quiet lake", "gore"])
