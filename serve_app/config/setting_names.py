"""`SettingNames`: every name by which a setting may be written, and what a misspelt one meant."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.config.deprecated_names import SETTINGS as DEPRECATED
from serve_app.config.deprecated_names import warn_deprecated
from serve_app.core.errors import SettingsError
from serve_app.core.suggest import NEARLY_EQUAL, PLAUSIBLE, suggest

PREFIX = "AURA_"
IGNORED = frozenset({"API_KEY"})  # the frontend's own, in the same file
_DISTINCTIVE_CHARS = 7  # of a name that can only be meant for this service


class Given(NamedTuple):
    """A value under the name by which it was written."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class SettingNames:
    """The names of all settings: the current ones, those with the prefix, and deprecated ones."""

    variables: Mapping[str, str]  # the current name of each setting, and its field

    def field_of(self, name: str) -> str | None:
        """Return the field that a name sets, or None if it is not a setting."""
        bare = name.upper().removeprefix(PREFIX)
        return self.variables.get(bare) or self.variables.get(DEPRECATED.get(name.upper(), ""))

    def meant(self, name: str, *, similarity: float = PLAUSIBLE) -> str | None:
        """Return the current name closest to a misspelt one, with the prefix if that has it."""
        bare = name.upper().removeprefix(PREFIX)
        match = suggest(bare, [*self.variables, *DEPRECATED], similarity=similarity)
        if match is None:
            return None
        current = DEPRECATED.get(match, match)
        return PREFIX + current if name.upper().startswith(PREFIX) else current

    def refuse_near_misses(self, names: Iterable[str]) -> None:
        """Raise `SettingsError` for a name that is almost a setting, and would be ignored.

        A bare name of a few letters is near too many words: CHOST is no misspelt HOST.
        """
        for name in sorted(names):
            if name in IGNORED or self.field_of(name):
                continue
            if len(name) < _DISTINCTIVE_CHARS:
                continue
            if meant := self.meant(name, similarity=NEARLY_EQUAL):
                raise SettingsError(
                    "is not a setting of this service",
                    name,
                    meant,
                    subject=name,
                    remedy=f"Did you mean {meant}?",
                )

    def given_in(
        self,
        source: Mapping[str, str | None],
        label: str,
        *,
        keep_empty: bool = False,
        warn: bool = True,
    ) -> dict[str, Given]:
        """Return the settings that a source gives, by field; empty ones only if `keep_empty`.

        A name with the prefix wins over one without, which may be another program's. Logs a warning
        for each deprecated name. Raises `SettingsError` if two other names of one setting have
        different values.
        """
        given: dict[str, Given] = {}
        for name, value in source.items():
            field = self.field_of(name)
            if field is None or not (value or keep_empty):
                continue
            value = value or ""
            previous = given.get(field)
            if previous and _has_prefix(previous.name) != _has_prefix(name):
                if _has_prefix(previous.name):
                    continue
            elif previous and previous.value != value:
                if not value:
                    continue
                if previous.value:
                    raise SettingsError(
                        "are names of the same setting, with different values",
                        name,
                        subject=f"{previous.name} and {name} in {label}",
                        remedy="Remove one of them",
                    )
            if warn and (current := DEPRECATED.get(name.upper())):
                warn_deprecated(name, current, where=label)
            given[field] = Given(name, value)
        return given


def _has_prefix(name: str) -> bool:
    return name.upper().startswith(PREFIX)
