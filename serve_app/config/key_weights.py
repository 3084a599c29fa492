"""The weights of callers' keys, as KEY_WEIGHTS lists them."""

from collections.abc import Sequence

from serve_app.core.errors import SettingsError


def weights_by_key(keys: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Return the weight of each key that has one.

    Raises `SettingsError` unless there are as many weights as keys, or none.
    """
    if weights and len(weights) != len(keys):
        raise SettingsError(
            f"must have one number for each key: API_KEYS has {len(keys)}, this has {len(weights)}",
            "KEY_WEIGHTS",
            subject="KEY_WEIGHTS",
        )
    return dict(zip(keys, weights, strict=False))
