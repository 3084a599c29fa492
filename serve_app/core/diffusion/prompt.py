"""The words of a prompt: what weighs more or less, where a new chunk begins, and what fills one.

Knows no tokenizer and no encoder: text comes in, tokens are numbers that somebody made of it.
The syntax is AUTOMATIC1111's: `(a)` weighs 1.1, `[a]` 1/1.1, `(a:1.3)` 1.3, and groups multiply;
`\\(` is the bracket itself; `BREAK` ends a chunk. As there, a group that nobody closes goes on to
the end, and a bracket that closes nothing is text. Where that parser fails, drops or forgets, this
one takes what stands there: `(a:1.2.3)` is no error but text in brackets, a backslash before
anything else stays, and a BREAK in a group still breaks. `[a:b:0.5]` edits no prompt: it is text in
brackets.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_TOKENS = 75  # tokens between the start and the end that an encoder wants around them
MAX_CHUNKS = 32  # 2400 tokens: 8000 characters of plain words have about 1800
WEIGHT_RANGE = (0.0, 2.0)  # the range that compel gives; AUTOMATIC1111 and ComfyUI give none
_NEAR = 20  # tokens: AUTOMATIC1111's comma_padding_backtrack
_PLAIN = {"(": 1.1, "[": 1 / 1.1}  # what a group weighs that has no number
_MARK = re.compile(
    r"\\[\\()\[\]]"
    r"|[()\[\]]"
    r"|:\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)"  # the end of a group that has a number
    r"|\bBREAK\b"
)

Token = tuple[int, float]  # its number and its weight


@dataclass(frozen=True, slots=True)
class WeightedText:
    """A stretch of text of one weight. The weight is the one asked for: see `held`."""

    text: str
    weight: float = 1.0


def parse(prompt: str) -> tuple[tuple[WeightedText, ...], ...]:
    """The sections of a prompt, parted by BREAK, each in phrases whose neighbours weigh otherwise.

    Every text has a reading. Without marks it is one phrase, the whole of it.
    """
    marks = list(_MARK.finditer(prompt))
    groups = _groups(marks)
    sections: list[list[WeightedText]] = [[]]
    open_groups = {"(": [1.0], "[": [1.0]}  # their products, the innermost last
    at = 0
    for number, mark in enumerate(marks):
        text, said = prompt[at : mark.start()], mark[0]
        at = mark.end()
        if said[0] == "\\":
            text += said[1]
        elif number not in groups and said != "BREAK":
            text += said
        weight = open_groups["("][-1] * open_groups["["][-1]
        _append(sections[-1], WeightedText(text, weight))
        if said == "BREAK":
            sections.append([])
        elif number in groups:
            products = open_groups[_kind(said)]
            if said in open_groups:
                products.append(products[-1] * groups[number])
            else:
                products.pop()
    _append(sections[-1], WeightedText(prompt[at:], open_groups["("][-1] * open_groups["["][-1]))
    return tuple(map(tuple, sections))


def strip_markup(prompt: str) -> str:
    """The text that is drawn, without its marks."""
    return " ".join("".join(phrase.text for phrase in section) for section in parse(prompt))


def clamp_weight(weight: float) -> float:
    """The weight, or the nearest one in `WEIGHTS`; 0 for one that overflowed into no number."""
    low, high = WEIGHT_RANGE
    return min(max(low, weight), high)


def chunk_tokens(
    sections: Sequence[Sequence[Token]], comma: int | None
) -> tuple[tuple[Token, ...], ...]:
    """The tokens in chunks of at most `CHUNK`, in order; at least one chunk.

    A section begins a chunk; an empty one is a chunk, unless it is the last. What follows the last
    comma of a full chunk, if near the end, begins the next one, so that no phrase is torn.
    `comma` is the number of that token, if there is one. AUTOMATIC1111's defaults give the same.
    """
    chunks: list[list[Token]] = []
    for section in sections:
        chunks.append([])
        for token in section:
            if len(chunks[-1]) == CHUNK_TOKENS:
                end = CHUNK_TOKENS if token[0] == comma else _after_comma(chunks[-1], comma)
                chunks.append(chunks[-1][end:])
                del chunks[-2][end:]
            chunks[-1].append(token)
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()
    return tuple(map(tuple, chunks))


def _groups(marks: Sequence[re.Match[str]]) -> dict[int, float]:
    """What each group weighs, by the places of the marks that open it and, if one does, close it.

    Round and square brackets are paired apart from each other, as in AUTOMATIC1111: `(a [b) c]`.
    """
    groups: dict[int, float] = {}
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    for number, mark in enumerate(marks):
        said = mark[0]
        if said in waiting:
            waiting[said].append(number)
            groups[number] = _PLAIN[said]
        elif said[0] in ")]:" and waiting[_kind(said)]:
            opened = waiting[_kind(said)].pop()
            if mark[1] is not None:
                groups[opened] = float(mark[1])
            groups[number] = groups[opened]
    return groups


def _kind(bracket: str) -> str:
    return "[" if bracket in "[]" else "("


def _append(section: list[WeightedText], phrase: WeightedText) -> None:
    if section and section[-1].weight == phrase.weight:
        section[-1] = WeightedText(section[-1].text + phrase.text, phrase.weight)
    elif phrase.text:
        section.append(phrase)


def _after_comma(chunk: Sequence[Token], comma: int | None) -> int:
    """The place after the last comma of a full chunk, if fewer than `_NEAR` tokens follow it."""
    for place in range(CHUNK_TOKENS, CHUNK_TOKENS - _NEAR, -1):
        if chunk[place - 1][0] == comma:
            return place
    return CHUNK_TOKENS
