"""What the page says: in two languages, with nothing missing and nothing left over."""

import re

from playwright.sync_api import Page

from serve_app.core.service.info import HealthStatus
from serve_app.ingress.errors import STATUSES
from serve_app.ingress.pages import WEB_FOLDER

FOLDER = WEB_FOLDER / "page"
SOURCES = [WEB_FOLDER / "index.html", *sorted(FOLDER.glob("*.js"))]
SPOKEN = {"en", "es"}
COMPUTED = ("error_", "not_")  # names that the page puts together


def words(page: Page, language: str) -> dict[str, str]:
    """Return what the page says in a language, by name."""
    found: dict[str, str] = page.evaluate(
        """async (language) => {
          const { default: words } = await import(new URL(`static/page/${language}.js`, location));
          return words;
        }""",
        language,
    )
    return found


def test_both_languages_say_the_same_things(page: Page) -> None:
    english, spanish = words(page, "en"), words(page, "es")
    assert english.keys() == spanish.keys()
    for name, sentence in english.items():
        values = re.findall(r"\{\w+\}", sentence)
        assert sorted(values) == sorted(re.findall(r"\{\w+\}", spanish[name])), name


def test_every_text_that_is_named_exists_and_every_text_is_used(page: Page) -> None:
    source = "\n".join(file.read_text() for file in SOURCES if file.stem not in SPOKEN)
    english = words(page, "en")
    named = set(re.findall(r'data-(?:text|label)="(\w+)"', source))
    named |= set(re.findall(r'\b(?:text|button)\(\s*"(\w+)"', source))
    assert named <= english.keys()
    quoted = set(re.findall(r'"(\w+)"', source))
    unused = english.keys() - quoted - {status.value for status in HealthStatus}
    assert not [name for name in unused if not name.startswith(COMPUTED)]


def test_errors_that_have_words_of_the_page_are_errors_of_the_service(page: Page) -> None:
    codes = {kind.code for kind in STATUSES}
    own = {name.removeprefix("error_") for name in words(page, "en") if name.startswith("error_")}
    assert own - {"UNREACHABLE", "NO_KEYS"} <= codes
