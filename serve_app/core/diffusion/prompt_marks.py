r"""Marks of other tools in prompts: which LoRAs they name, and which ones can't be followed.

`<lora:name:0.8>` and LyCORIS's `<lyco:…>` are read here, prompt editing and alternation by
`prompt_schedule`. All others are text, and each kind that is found gives one warning that says so.
Weights in brackets, `BREAK` and `\(` are no such marks: see `prompt`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.core.diffusion.prompt_schedule import constant_text, unread_text

_LORA_TAGS = ("lora", "lyco")
_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_ESCAPED = re.compile(r"\\[\\()\[\]{}:|]")
_BRACKETS = {"]": "[", ")": "(", "}": "{"}
_EMOTICON_EYES = ":;="  # before a |, as in :|
_AND = re.compile(r"\b(\w+)\W+AND\W+(\w+)")
_MALFORMED = "its colons, bars or brackets are not in their places"
_PATTERNS = {  # by the sentence's beginning and end, around the prompt's name
    ("embedding:name", "there are no textual inversions"): r"(?<!\w)embedding:\w",
    ("__name__", "there are no wildcard files"): r"(?<!\w)__[A-Za-z0-9][\w\-/.*]*__(?!\w)",
    ("<name:…>", "only <lora:…> and <lyco:…> are known"): r"<[a-z]+(\[[^\]]*\])?:[^<>]+>",
    (
        "ADDCOMM, ADDCOL and the like",
        "there are no regions with prompts of their own",
    ): r"\bADD(COMM|BASE|COL|ROW|P)\b",
    (
        "--option",
        "sizes, seeds and the like are fields of the request",
    ): r"(?<!\S)--(ar|aspect|chaos|iw|niji|no|q|quality|seed|s|sref|style|stylize|v|version)\s+\S",
    ("text::2", "weights are written (text:1.3)"): r"(?<=\w)::-?\d+(\.\d+)?(?![\d.]*\s*\])",
    ("(text)1.3", "weights are written (text:1.3)"): r"\)\d\.\d+\b",
    ("(…).and(), .blend() and .swap()", "prompts are not combined"): r"\)\.(and|blend|swap)\(",
}
_MARKS = {labels: re.compile(pattern) for labels, pattern in _PATTERNS.items()}


@dataclass(frozen=True, slots=True)
class PromptTag:
    """A tag such as `<lora:ink:0.8>`.

    `weight` is None where the tag has none; `is_clear` says that it has nothing beyond the two.
    """

    kind: str
    name: str
    weight: float | None
    is_clear: bool

    @property
    def is_lora(self) -> bool:
        """Return whether it names a LoRA, or one of its kin."""
        return self.kind in _LORA_TAGS


@dataclass(frozen=True, slots=True)
class _Group:
    """The inside of a pair of brackets, without what inner groups hold."""

    bracket: str
    text: str


def read_tags(prompt: str) -> tuple[str, tuple[PromptTag, ...]]:
    """Return a prompt without its tags for extensions, and those tags in their order.

    A prompt that has none is returned unchanged.
    """
    tags = tuple(_tag(match[1].lower(), match[2]) for match in _TAG.finditer(prompt))
    return (_TAG.sub("", prompt).strip() if tags else prompt), tags


def changes_tags(prompt: str) -> bool:
    """Return whether a tag is in a group of `prompt_schedule`, which does not turn it on or off."""
    marked, number = _TAG.subn("\0", prompt)
    return constant_text(marked).count("\0") < number


def mark_warnings(prompt: str, name: str) -> tuple[str, ...]:
    """Return a warning for each kind of mark that is read as text; they call the prompt `name`."""
    text = _ESCAPED.sub("  ", unread_text(prompt))
    groups = tuple(_groups(text))
    found = []
    if any(_is_edited(group) for group in groups):
        found.append(("[from:to:when]", _MALFORMED))
    if any(_has_choices(group, "[") for group in groups):
        found.append(("[a|b]", _MALFORMED))
    if any(_has_choices(group, "{") for group in groups):
        found.append(("{a|b}", "nothing is chosen at random"))
    if any(not (match[1] + match[2]).isupper() for match in _AND.finditer(text)):
        found.append(("AND", "prompts are not combined"))
    found += [labels for labels, pattern in _MARKS.items() if pattern.search(text)]
    return tuple(f"{mark} in the {name} is read as text: {reason}" for mark, reason in found)


def _tag(kind: str, inside: str) -> PromptTag:
    name, *values = (value.strip() for value in inside.split(":"))
    if values and _NUMBER.fullmatch(values[0]):
        return PromptTag(kind, name, float(values[0]), len(values) == 1)
    return PromptTag(kind, name, None, not values)


def _groups(text: str) -> Iterator[_Group]:
    """Yield every closed group; brackets of one kind don't close those of another."""
    open_groups: list[tuple[str, list[str]]] = []
    for symbol in text:
        if symbol in _BRACKETS.values():
            open_groups.append((symbol, []))
        elif symbol in _BRACKETS:
            if open_groups and open_groups[-1][0] == _BRACKETS[symbol]:
                bracket, inside = open_groups.pop()
                yield _Group(bracket, "".join(inside))
                symbol = "_"  # something is there
            if open_groups:
                open_groups[-1][1].append(symbol)
        elif open_groups:
            open_groups[-1][1].append(symbol)


def _is_edited(group: _Group) -> bool:
    """Return whether a group looks like prompt editing, and like no time or ratio."""
    *before, when = (part.strip() for part in group.text.split(":"))
    if group.bracket != "[" or not before or not _NUMBER.fullmatch(when):
        return False
    return not before[-1][-1:].isdigit()


def _has_choices(group: _Group, bracket: str) -> bool:
    """Return whether a group of a kind of brackets has alternatives."""
    if group.bracket != bracket:
        return False
    places = (place for place, symbol in enumerate(group.text) if symbol == "|")
    return any(group.text[max(0, place - 1) : place] not in (*_EMOTICON_EYES,) for place in places)
