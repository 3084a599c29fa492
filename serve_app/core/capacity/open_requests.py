"""Whether one more request of a caller may be open, of those that may be in all.

A number bounds memory, which a fair share of GPU time does not: without a rule of its own one
caller's flood would take every place, and refuse everybody else.
"""

from math import ceil

from serve_app.core.caller import Caller
from serve_app.core.capacity.fair_share import Amounts

_RESERVED = 4  # one place of so many is kept for callers below their share


def has_room(open_requests: Amounts, caller: Caller, limit: int) -> bool:
    """Return whether a caller may open one more beside these, which are numbers by caller.

    Three quarters of the places are anybody's. The others are for callers who have fewer open than
    their share, by weight, of that last quarter; so a lone caller never gets these.
    """
    total, reserved = sum(open_requests.values()), limit // _RESERVED
    if total < limit - reserved:
        return True
    if total >= limit:
        return False
    weights = caller.weight
    weights += sum(other.weight for other in open_requests if other.name != caller.name)
    own = sum(number for other, number in open_requests.items() if other.name == caller.name)
    return own < ceil(reserved * caller.weight / weights)
