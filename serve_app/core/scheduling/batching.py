"""`choose_batch`: which samples step together. The service and the simulator both call it."""

from collections.abc import Iterable


def choose_batch(ranked: Iterable[tuple[str, int]], *, rows: int) -> tuple[str, ...]:
    """Return the ids of the samples that step together, with at most `rows`.

    `ranked` has the samples of one batch key with the UNet rows of their next step, in the order in
    which they get places: callers by their shares, and of one caller the most urgent first. Urgency
    is the turn at which a sample would have ended if it had run alone since it arrived. So the
    shorter of two samples that arrive together goes first, and a waiting sample is overtaken less
    and less, since the due turns of newcomers keep growing: no sample starves.
    """
    chosen: list[str] = []
    for id, needed in ranked:
        if needed <= rows:
            chosen.append(id)
            rows -= needed
        if not rows:
            break
    return tuple(chosen)
