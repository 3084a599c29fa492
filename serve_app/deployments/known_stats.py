"""`KnownStats`: what an ingress last heard of each replica of a stage.

No Ray and no clock: the caller passes the time, in seconds.
"""

from collections.abc import Sequence

from serve_app.core.service.events import ReplicaStats

SILENCE_S = 5.0  # for which a replica that does not respond counts as it last was


class KnownStats:
    """The newest stats of each replica, of which a busy one counts as it last was for a while.

    /health must neither wait for a replica that is too busy to respond, nor miss it at once. A
    result names its replica by its process id, and silence names nobody: as many silent replicas
    as there are, so many of the known ones that did not respond count.
    """

    def __init__(self) -> None:
        self._known: dict[int, ReplicaStats] = {}  # by process id, those that responded last first
        self._missing_since: dict[int, float] = {}  # by process id: the first unanswered call

    def update(
        self, answers: Sequence[ReplicaStats], silent: int, now: float
    ) -> list[ReplicaStats]:
        """Note a call of all replicas; return the stats to count: the answers, then silent ones.

        `silent` replicas did not respond in time. Those that failed are not among them.
        """
        answered = {stats.pid: stats for stats in answers}
        missing = {pid: stats for pid, stats in self._known.items() if pid not in answered}
        since = {pid: self._missing_since.get(pid, now) for pid in missing}
        kept = [pid for pid in missing if now - since[pid] < SILENCE_S][:silent]
        self._known = answered | {pid: missing[pid] for pid in kept}
        self._missing_since = {pid: since[pid] for pid in kept}
        return [*answers, *(missing[pid] for pid in kept)]
