"""Whether one more request of a caller may be open, of those that may be in all.

A number bounds memory, which a fair share of GPU time does not: without a rule of its own one
caller's flood would take every place, and refuse everybody else. The same rule shares bytes.
"""

from math import ceil

from serve_app.core.caller import Caller
from serve_app.core.capacity.fair_share import Amounts

_RESERVED = 4  # one place of so many is kept for callers below their share


def has_room(taken: Amounts, caller: Caller, limit: int, more: float = 1) -> bool:
    """Return whether a caller may take `more` beside what is taken, by caller, of the limit.

    Three quarters of the limit are anybody's. The rest is for callers who have taken less than
    their share, by weight, of that last quarter; so a lone caller never gets it. What is taken as a
    whole may lead beyond that share.
    """
    total, reserved = sum(taken.values()) + more, limit // _RESERVED
    if total <= limit - reserved:
        return True
    if total > limit:
        return False
    weights = caller.weight + sum(other.weight for other in taken if other.name != caller.name)
    own = sum(amount for other, amount in taken.items() if other.name == caller.name)
    return own < ceil(reserved * caller.weight / weights)
