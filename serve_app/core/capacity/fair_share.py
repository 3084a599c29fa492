"""Fair sharing as a fluid: what is served before a newcomer, and what is left after some seconds.

The fluid is generalized processor sharing (Parekh and Gallager 1993), which the fair queueing of
dispatcher and engines approximates: callers with work are served at the same time, each at a rate
in proportion to its weight. Amounts are seconds of any resource. No clock.
"""

from collections.abc import Mapping

from serve_app.core.caller import Caller

Amounts = Mapping[Caller, float]  # what is owed, by caller
_NOTHING = 1e-9  # seconds, the rounding errors of a sum
_REST = "(others)"  # the name of the callers that have none of their own: see `folded`


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
    owed = {caller: amount for caller, amount in owed.items() if amount > 0}
    left = sorted((amount / caller.weight, caller.weight) for caller, amount in owed.items())
    weights = sum(weight for _, weight in left)
    level, served = 0.0, max(0.0, served)  # what each has been served, by its weight; what is left
    for per_weight, weight in left:  # until this caller is done, all that are left are served
        needed = (per_weight - level) * weights
        if served < needed:
            level += served / weights
            break
        level, served = per_weight, served - needed
        weights -= weight
    return {
        caller: amount - level * caller.weight
        for caller, amount in owed.items()
        if amount - level * caller.weight > _NOTHING
    }


def folded(amounts: Amounts, max_callers: int) -> dict[Caller, float]:
    """Return the amounts with at most so many callers by name.

    Those with the least become one caller, whose weight is the sum of theirs, so that as much is
    served before a newcomer as if they were many.
    """
    names = [caller for caller in amounts if caller.name != _REST]
    if len(names) <= max_callers:
        return dict(amounts)
    named = sorted(names, key=lambda caller: -amounts[caller])[:max_callers]
    kept = {caller: amounts[caller] for caller in named}
    rest = {caller: amount for caller, amount in amounts.items() if caller not in kept}
    return {**kept, Caller(_REST, sum(caller.weight for caller in rest)): sum(rest.values())}


def total(*parts: Amounts) -> dict[Caller, float]:
    """Return the sum of what several parts owe, by caller."""
    amounts: dict[Caller, float] = {}
    for part in parts:
        for caller, amount in part.items():
            amounts[caller] = amounts.get(caller, 0.0) + amount
    return amounts
