r"""Prompt syntax: the weight of each word, and how tokens fill the encoders' chunks.

No tokenizer and no encoder: tokens are numbers that the caller makes from text. The syntax is
AUTOMATIC1111's: `(a)` has weight 1.1, `[a]` 1/1.1, `(a:1.3)` 1.3, and nested groups multiply;
`\(` is the bracket itself, as are `\:` and `\|`; `BREAK` ends a chunk. As in AUTOMATIC1111, an
unclosed group extends to the end, and an unmatched closing bracket is text. Where its parser fails
or drops input, this one keeps it: `(a:1.2.3)` is text in brackets instead of an error, a backslash
before any other character stays, and a BREAK inside a group still breaks. Prompt editing and
alternation are read before, by `prompt_schedule`: here `[a:b:0.5]` is text in brackets.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_TOKENS = 75  # without the start and end tokens, which an encoder adds
ENCODED_TOKENS = CHUNK_TOKENS + 2  # of a chunk, with these
MAX_CHUNKS = 32  # 2400 tokens; 8000 characters of plain words have about 1800
WEIGHT_RANGE = (0.0, 2.0)  # as in compel; AUTOMATIC1111 and ComfyUI have no limits
_COMMA_BACKTRACK = 20  # tokens: AUTOMATIC1111's comma_padding_backtrack
_DEFAULT_WEIGHTS = {"(": 1.1, "[": 1 / 1.1}  # of a group without a number
_MARK = re.compile(
    r"\\[\\()\[\]:|]"
    r"|[()\[\]]"
    r"|:\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)"  # the end of a group that has a number
    r"|\bBREAK\b"
)

Token = tuple[int, float]  # its id and its weight


@dataclass(frozen=True, slots=True)
class WeightedText:
    """A stretch of text with one weight, as requested: `clamp_weight` limits it later."""

    text: str
    weight: float = 1.0


def parse(prompt: str) -> tuple[tuple[WeightedText, ...], ...]:
    """Return the sections of a prompt, split at BREAK, each as phrases of different weights.

    Never fails. A prompt without markup is one section of one phrase.
    """
    marks = list(_MARK.finditer(prompt))
    groups = _groups(marks)
    sections: list[list[WeightedText]] = [[]]
    open_groups = {"(": [1.0], "[": [1.0]}  # products of their weights, the innermost last
    start = 0
    for number, mark in enumerate(marks):
        text, symbol = prompt[start : mark.start()], mark[0]
        start = mark.end()
        if symbol[0] == "\\":
            text += symbol[1]
        elif number not in groups and symbol != "BREAK":
            text += symbol
        weight = open_groups["("][-1] * open_groups["["][-1]
        _append(sections[-1], WeightedText(text, weight))
        if symbol == "BREAK":
            sections.append([])
        elif number in groups:
            products = open_groups[_kind(symbol)]
            if symbol in open_groups:
                products.append(products[-1] * groups[number])
            else:
                products.pop()
    _append(sections[-1], WeightedText(prompt[start:], open_groups["("][-1] * open_groups["["][-1]))
    return tuple(map(tuple, sections))


def strip_markup(prompt: str) -> str:
    """Return the text that the encoders see, without markup."""
    return " ".join("".join(phrase.text for phrase in section) for section in parse(prompt))


def clamp_weight(weight: float) -> float:
    """Return the nearest weight in `WEIGHT_RANGE`; 0 for NaN, which an overflow can give."""
    low, high = WEIGHT_RANGE
    return min(max(low, weight), high)


def chunk_tokens(
    sections: Sequence[Sequence[Token]], comma: int | None
) -> tuple[tuple[Token, ...], ...]:
    """Return the tokens in chunks of at most `CHUNK_TOKENS`, in order; at least one chunk.

    Every section starts a chunk; an empty section is a chunk, unless it is the last. Tokens after
    the last comma of a full chunk, if few, move to the next chunk, so that no phrase is split.
    `comma` is the id of the comma token, if the tokenizer has one. Equals AUTOMATIC1111's defaults.
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
    """Return the weight of each group, by the indices of its opening and closing marks.

    An unclosed group has only the first. Round and square brackets are matched independently, as in
    AUTOMATIC1111: `(a [b) c]`.
    """
    groups: dict[int, float] = {}
    unclosed: dict[str, list[int]] = {"(": [], "[": []}
    for number, mark in enumerate(marks):
        symbol = mark[0]
        if symbol in unclosed:
            unclosed[symbol].append(number)
            groups[number] = _DEFAULT_WEIGHTS[symbol]
        elif symbol[0] in ")]:" and unclosed[_kind(symbol)]:
            opening = unclosed[_kind(symbol)].pop()
            if mark[1] is not None:
                groups[opening] = float(mark[1])
            groups[number] = groups[opening]
    return groups


def _kind(bracket: str) -> str:
    """Return the opening bracket of the same kind."""
    return "[" if bracket in "[]" else "("


def _append(section: list[WeightedText], phrase: WeightedText) -> None:
    """Append a phrase; extend the last one if it has the same weight."""
    if section and section[-1].weight == phrase.weight:
        section[-1] = WeightedText(section[-1].text + phrase.text, phrase.weight)
    elif phrase.text:
        section.append(phrase)


def _after_comma(chunk: Sequence[Token], comma: int | None) -> int:
    """Return the index after a full chunk's last comma, or its end if that comma is far from it."""
    for index in range(CHUNK_TOKENS, CHUNK_TOKENS - _COMMA_BACKTRACK, -1):
        if chunk[index - 1][0] == comma:
            return index
    return CHUNK_TOKENS
