"""Numbers of callers' keys, which KEY_WEIGHTS and KEY_DAILY_MPSTEPS list as API_KEYS does."""

from collections.abc import Sequence

from serve_app.config.settings import Settings
from serve_app.core.errors import SettingsError


def weights_by_key(settings: Settings) -> dict[str, float]:
    """Return the weight of each key that has one. Raises `SettingsError`."""
    return _by_key(settings.api_keys, settings.key_weights, "KEY_WEIGHTS")


def daily_quotas_by_key(settings: Settings) -> dict[str, float]:
    """Return the megapixel-steps that each key may use on a day, 0 for as many as it likes.

    Raises `SettingsError`.
    """
    return _by_key(settings.api_keys, settings.key_daily_mpsteps, "KEY_DAILY_MPSTEPS")


def _by_key(keys: Sequence[str], numbers: Sequence[float], variable: str) -> dict[str, float]:
    if numbers and len(numbers) != len(keys):
        raise SettingsError(
            f"must have one number for each key: API_KEYS has {len(keys)}, this has {len(numbers)}",
            variable,
            subject=variable,
        )
    return dict(zip(keys, numbers, strict=False))
