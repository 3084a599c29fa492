r"""Prompt editing and alternation: which text a prompt has at which step.

The syntax is AUTOMATIC1111's. `[from:to:when]` becomes another text after step `when`; `[to:when]`
and `[from::when]` have nothing before or after. `when` with a point is a share of the steps,
rounded down, else a step, counted from 1. `[a|b|c]` is the next of its texts at every step, and
then the first again. Groups nest, weights inside them stay, and `\[` opens none.

Steps are those of a request, also where a sampler evaluates the network twice for each. They are
counted from the first that runs, and shares are of all, as in AUTOMATIC1111's img2img: with a
strength of 0.5, 10 of 20 steps run, and `[a:b:0.5]` is `a` in all of them.

Deviations: AUTOMATIC1111's sampler counts from 0 where it looks a step up, so that its pictures
change one step later than its documentation says; and with Heun's method its whole `when` counts
evaluations. Here a group that is not well-formed is text, and the others are read; there, one `|`
or final backslash out of place turns off all groups of a prompt.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from serve_app.core.errors import InvalidRequest

MAX_TEXTS = 16  # of one prompt: each is encoded, and kept until the image is done
_MAX_CHOICES = (
    15_000  # of one prompt: one for each group, at each step at which the text may change
)
_PIECE = re.compile(r"(?:[^\\\[\]():|]|\\.)+|.", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_OPENING = {")": "(", "]": "["}


@dataclass(frozen=True, slots=True)
class ScheduledText:
    """The text of a prompt up to a step, from where the one before it ends."""

    end_step: int  # its last step, counted from 1
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class _Edit:
    """`[from:to:when]`."""

    before: "_Text"
    after: "_Text"
    when: str

    def end_step(self, steps: int) -> int:
        """Return the last step of `before`; below 1 if it has none."""
        value = float(self.when)
        return int(max(0.0, min(steps, value * steps if "." in self.when else value)))


@dataclass(frozen=True, slots=True, eq=False)
class _Alternation:
    """`[a|b]`."""

    choices: "tuple[_Text, ...]"


_Group = _Edit | _Alternation
_Text = tuple[str | _Group, ...]
_Node = str | tuple["_Node", ...] | _Group  # text in brackets that is no group is a tuple


@dataclass(slots=True)
class _OpenGroup:
    """A bracket that may still be closed: its contents, split at colons and bars."""

    bracket: str
    parts: list[list[_Node]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def as_text(self) -> tuple[_Node, ...]:
        """Return the bracket and what follows as they are written."""
        if not self.separators:
            return (self.bracket, *self.parts[0])
        following = zip(self.separators, map(tuple, self.parts[1:]), strict=True)
        return (self.bracket, *self.parts[0], *(node for pair in following for node in pair))

    def closed(self, bracket: str) -> _Node | None:
        """Return the group, closed by a bracket of its kind; None if it is not well-formed."""
        if not self.separators or (self.bracket == "(" and self.separators == [":"]):
            return (*self.as_text(), bracket)  # weights, which `prompt` reads
        if self.bracket == "(":
            return None
        if set(self.separators) == {"|"}:
            return _Alternation(tuple(map(_flat, self.parts)))
        *texts, last = self.parts
        when = _WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
        if when is None or "|" in self.separators or len(texts) > 2:
            return None
        return _Edit(_flat(texts[0]) if len(texts) == 2 else (), _flat(texts[-1]), when[1])


def prompt_schedule(prompt: str, steps: int, path: str = "prompt") -> tuple[ScheduledText, ...]:
    """Return the texts of a prompt over `steps` steps, in order; no two neighbours are equal.

    Raises `InvalidRequest` for the field `path` if there are more than `MAX_TEXTS` different ones,
    or more than `_MAX_CHOICES` to make.
    """
    if "[" not in prompt:
        return (ScheduledText(steps, prompt),)
    return _schedule(prompt, steps, path)


@lru_cache(maxsize=64)  # a forecast asks for it again and again
def _schedule(prompt: str, steps: int, path: str) -> tuple[ScheduledText, ...]:
    tree, groups = _parse(prompt)
    if not groups:
        return (ScheduledText(steps, prompt),)
    ends = {steps}
    for group in groups:
        ends |= set(range(1, steps)) if isinstance(group, _Alternation) else {group.end_step(steps)}
    ends -= {0}
    if len(groups) * len(ends) > _MAX_CHOICES:
        raise InvalidRequest(
            path,
            f"has {len(groups)} groups in brackets, which change it at up to {len(ends)} steps "
            f"(allowed: up to {_MAX_CHOICES // len(ends)} groups)",
            remedy="Use fewer of [a|b] and [a:b:0.5]",
        )
    schedule: list[ScheduledText] = []
    texts: dict[str, str] = {}  # each is kept once
    for end in sorted(ends):
        text = _text_at(tree, end, steps)
        text = texts.setdefault(text, text)
        if len(texts) > MAX_TEXTS:
            raise InvalidRequest(
                path,
                f"changes into more than {MAX_TEXTS} different texts over {steps} steps "
                f"(allowed: up to {MAX_TEXTS}, each of which is encoded)",
                remedy="Use fewer alternatives in [a|b]",
            )
        if schedule and schedule[-1].text == text:
            schedule.pop()
        schedule.append(ScheduledText(end, text))
    return tuple(schedule)


def texts_by_step(schedule: Sequence[ScheduledText], steps: int) -> tuple[str, ...]:
    """Return the text at each of the first `steps` steps of a schedule."""
    texts: list[str] = []
    for entry in schedule:
        texts += [entry.text] * (min(entry.end_step, steps) - len(texts))
    return tuple(texts)


def unread_text(prompt: str) -> str:
    """Return a prompt with all texts of each group side by side: what is still text everywhere."""

    def all_texts(group: _Group) -> _Text:
        choices = group.choices if isinstance(group, _Alternation) else (group.before, group.after)
        return tuple(node for choice in choices for node in (*choice, " "))

    return _render(_parse(prompt)[0], all_texts)


def constant_text(prompt: str) -> str:
    """Return a prompt without its groups: what it is at every step."""
    return _render(_parse(prompt)[0], lambda _: ())


def last_change(prompt: str, steps: int) -> int:
    """Return the last step after which an edit changes a prompt; 0 without edits."""
    edits = (group for group in _parse(prompt)[1] if isinstance(group, _Edit))
    return max((edit.end_step(steps) for edit in edits), default=0)


@lru_cache(maxsize=8)  # a request asks for several things of it
def _parse(prompt: str) -> tuple[_Text, tuple[_Group, ...]]:
    """Return a prompt as text and groups by turns, and all groups, also those inside of others.

    A well-formed group has only well-formed ones inside. So whatever is out of place makes text of
    all brackets that are open around it, and of none that is closed.
    """
    top: list[_Node] = []
    open_groups: list[_OpenGroup] = []
    groups: list[_Group] = []
    for piece in _PIECE.findall(prompt) if "[" in prompt else [prompt]:
        inside = open_groups[-1].parts[-1] if open_groups else top
        if piece in ("(", "["):
            open_groups.append(_OpenGroup(piece))
        elif piece in _OPENING:
            is_match = bool(open_groups) and open_groups[-1].bracket == _OPENING[piece]
            node = open_groups[-1].closed(piece) if is_match else None
            if node is None:
                top += [open_group.as_text() for open_group in open_groups]
                open_groups.clear()
                top.append(piece)
                continue
            open_groups.pop()
            (open_groups[-1].parts[-1] if open_groups else top).append(node)
            if isinstance(node, _Edit | _Alternation):
                groups.append(node)
        elif open_groups and (piece == ":" or (piece == "|" and open_groups[-1].bracket == "[")):
            open_groups[-1].separators.append(piece)
            open_groups[-1].parts.append([])
        else:
            inside.append(piece)
    top += [open_group.as_text() for open_group in open_groups]
    return _flat(top), tuple(groups)


def _flat(nodes: Iterable[_Node]) -> _Text:
    """Return nodes without tuples, and with each stretch of text in one piece."""
    flat: list[str | _Group] = []
    text: list[str] = []
    stack = list(nodes)[::-1]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            text.append(node)
        elif isinstance(node, tuple):
            stack += reversed(node)
        else:
            flat += ["".join(text), node]
            text.clear()
    return (*flat, "".join(text))


def _text_at(tree: _Text, step: int, steps: int) -> str:
    def choose(group: _Group) -> _Text:
        if isinstance(group, _Alternation):
            return group.choices[(step - 1) % len(group.choices)]
        return group.before if step <= group.end_step(steps) else group.after

    return _render(tree, choose)


def _render(tree: _Text, choose: Callable[[_Group], _Text]) -> str:
    """Return the text of a tree, however deep, by the choice in each of its groups."""
    text: list[str] = []
    stack = list(tree[::-1])
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            text.append(node)
        else:
            stack += reversed(choose(node))
    return "".join(text)
