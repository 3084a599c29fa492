"""How often Python looks for unreachable reference cycles among everything that a process has.

It stops the process to do so. In an ingress with hundreds of open requests that takes some 50 ms,
for which nobody is answered, and by Python's own rule it happens several times a minute when many
requests come. Almost all of what requests leave behind is freed without it. Serve already leaves
out what a process has after its start.
"""

import gc

# Of the counts in `gc.set_threshold` only the last one is changed, from 10: collections of the
# middle generation between two of everything. What they must find is at most this much larger.
_MIDDLE_PER_FULL = 50


def collect_seldom() -> None:
    """Let Python look at everything five times less often than by default."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _MIDDLE_PER_FULL)
