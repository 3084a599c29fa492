"""Fair sharing as a fluid: what is served before a newcomer, and what is left after some seconds.

The fluid is generalized processor sharing (Parekh and Gallager 1993), which the fair queueing of
dispatcher and engines approximates: callers with work are served at the same time, each at a rate
in proportion to its weight. Amounts are seconds of any resource. No clock.
"""

from collections.abc import Mapping

from serve_app.core.caller import Caller

Amounts = Mapping[Caller, float]  # what is owed, by caller


def served_before(owed: Amounts, caller: Caller, earlier: float, own: float) -> float:
    """Return what is served until a caller's `own` is done, without that itself.

    `earlier` is what the caller itself is owed that goes first. Meanwhile another caller gets at
    most what its weight allows, and never more than it is owed.
    """
    per_weight = (earlier + own) / caller.weight
    return earlier + sum(
        min(amount, per_weight * other.weight) for other, amount in owed.items() if other != caller
    )


def drained(owed: Amounts, served: float) -> dict[Caller, float]:
    """Return what is owed after so much has been served, shared by the callers' weights."""
    left = {caller: amount for caller, amount in owed.items() if amount > 0}
    while left and served > 0:
        weights = sum(caller.weight for caller in left)
        # Until the first caller is done, all of them are served.
        per_weight = min(amount / caller.weight for caller, amount in left.items())
        per_weight = min(per_weight, served / weights)
        served -= per_weight * weights
        left = {
            caller: amount - per_weight * caller.weight
            for caller, amount in left.items()
            if amount > per_weight * caller.weight
        }
        if served <= _NOTHING * weights:
            break
    return left


def total(*parts: Amounts) -> dict[Caller, float]:
    """Return the sum of what several parts owe, by caller."""
    amounts: dict[Caller, float] = {}
    for part in parts:
        for caller, amount in part.items():
            amounts[caller] = amounts.get(caller, 0.0) + amount
    return amounts


_NOTHING = 1e-9  # seconds, the rounding errors of a sum
