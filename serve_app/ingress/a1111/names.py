"""AUTOMATIC1111's names of samplers, schedule types and checkpoints, and ours, both ways."""

import re

from serve_app.core.diffusion.samplers import TABLE, Sampler, SamplerDef, SigmaSpacing
from serve_app.core.errors import InvalidRequest

SAMPLERS = tuple(row.a1111_name for row in TABLE)
SCHEDULERS = tuple(spacing.a1111_name for spacing in SigmaSpacing)
_SPACINGS = {spacing.a1111_name.casefold(): spacing for spacing in SigmaSpacing}
_ROWS = {row.a1111_name.casefold(): row for row in TABLE}
_OWN = {"automatic", "none"}  # a sampler of these names is the model's own
_HASH = re.compile(r"\s*\[[0-9a-f]+\]$")  # behind the name of a checkpoint


def read_sampler(name: str | None, schedule: str | None, default: Sampler) -> Sampler | None:
    """Return the sampler of a name and a schedule type; None leaves it to the model.

    A name may be the web UI's, alone or with a schedule type behind it as in its older releases
    ("DPM++ 2M Karras"), its alias ("k_dpmpp_2m"), or one of ours. `default` is the model's own, of
    which a schedule type without a sampler is one. Raises `InvalidRequest`.
    """
    spacing = _read_schedule(schedule)
    if not name or name.casefold() in _OWN:
        if spacing is None:
            return None
        return _combined(default.definition, spacing)
    row, own_spacing = _read_name(name)
    return _combined(row, spacing or own_spacing or SigmaSpacing.CHECKPOINT)


def samplers_of(row: SamplerDef) -> list[str]:
    """Return the aliases of a sampler: the web UI's own, and our names with each spacing."""
    names = sorted(row.name(spacing) for spacing in row.spacings)
    return [f"k_{row.solver}", *names]


def checkpoint_name(title: str) -> str:
    """Return the name of a checkpoint without the hash that the web UI writes behind it."""
    return _HASH.sub("", title)


def _read_schedule(name: str | None) -> SigmaSpacing | None:
    """Return the spacing of a schedule type; None for no name, or for the automatic one."""
    if not name or name.casefold() in (SigmaSpacing.CHECKPOINT.a1111_name.casefold(), "none"):
        return None
    if name.casefold() in _SPACINGS:
        return _SPACINGS[name.casefold()]
    if name in list(SigmaSpacing):
        return SigmaSpacing(name)
    raise InvalidRequest("scheduler", f"must be one of {', '.join(SCHEDULERS)}")


def _read_name(name: str) -> tuple[SamplerDef, SigmaSpacing | None]:
    if name in list(Sampler):
        sampler = Sampler(name)
        own = sampler.spacing
        return sampler.definition, None if own is SigmaSpacing.CHECKPOINT else own
    folded = name.casefold()
    for suffix, spacing in _SPACINGS.items():
        if folded.endswith(f" {suffix}"):
            row = _ROWS.get(folded.removesuffix(f" {suffix}"))
            if row is not None:
                return row, spacing
    for row in TABLE:
        if folded == f"k_{row.solver}":
            return row, None
        if folded == f"k_{row.solver}_ka":
            return row, SigmaSpacing.KARRAS
    if folded in _ROWS:
        return _ROWS[folded], None
    raise InvalidRequest("sampler_name", f"must be one of {', '.join(SAMPLERS)}")


def _combined(row: SamplerDef, spacing: SigmaSpacing) -> Sampler:
    if spacing not in row.spacings:
        known = ", ".join(each.a1111_name for each in SigmaSpacing if each in row.spacings)
        raise InvalidRequest("scheduler", f"must be one of {known} for {row.a1111_name}")
    return Sampler(row.name(spacing))
