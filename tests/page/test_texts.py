"""What the page says: in two languages, with nothing missing and nothing left over."""

import re

from playwright.sync_api import Page

from serve_app.core.errors import AuraError, OperatorError
from serve_app.core.service.info import HealthStatus
from serve_app.ingress.errors import STATUSES
from serve_app.ingress.pages import WEB_FOLDER

FOLDER = WEB_FOLDER / "page"
SOURCES = [WEB_FOLDER / "index.html", *sorted(FOLDER.glob("*.js"))]
SPOKEN = {"en", "es"}
OF_THE_PAGE = {"UNREACHABLE", "NO_KEYS"}  # what it finds out by itself
UNTOLD = {
    "VALIDATION_ERROR",  # each wrong field has a sentence of its own
    *("INVALID_JSON", "NOT_ACCEPTABLE", "UNSUPPORTED_MEDIA_TYPE"),  # the page sends what is right
}
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


def codes_of(kind: type[AuraError]) -> set[str]:
    """Return the codes that callers may get of a class of errors and those below it."""
    if issubclass(kind, OperatorError):
        return set()
    return {kind.code}.union(*(codes_of(below) for below in kind.__subclasses__()))


def test_the_page_has_words_for_exactly_the_errors_of_the_service(page: Page) -> None:
    codes = codes_of(AuraError)
    assert {kind.code for kind in STATUSES} <= codes
    own = {name.removeprefix("error_") for name in words(page, "en") if name.startswith("error_")}
    assert own - OF_THE_PAGE <= codes
    assert codes - UNTOLD <= own
    assert not own & UNTOLD
