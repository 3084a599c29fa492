"""`Fleet`: what one process knows of a stage's replicas, and where it would send an image.

The process has sent some of their images itself. Each replica reports once in a while what it has,
including the images of other senders. No Ray and no clock.
"""

from collections.abc import Collection, Iterable, Mapping
from math import inf
from typing import Any
from zlib import crc32

from serve_app.core.caller import Caller
from serve_app.core.capacity.cost_model import CostTable
from serve_app.core.capacity.known_replica import InFlight, KnownReplica, NewImage, after_report
from serve_app.core.capacity.replica_report import (
    ReplicaReport,
    Wire,
    encode_batch_key,
    key_of,
    remaining_work,
)
from serve_app.core.capacity.routing import Candidate, rank_replicas
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.scheduling.work import BatchSize

_QUIET_S = 12.0  # seconds; even an idle replica sends a new report every five or so


class Fleet:
    """The replicas of a stage. The process that sends images to them is the only writer."""

    def __init__(self, images: int, sender: str = "") -> None:
        """Begin without replicas; `images` step together on one, until it reports itself.

        Each of several processes that send images is another `sender`: among replicas that are
        equal and were never chosen, each begins with another one. Reports show the others' images
        half a second late, so that they would all choose the same replica until then.
        """
        self._sender = sender
        self._replicas: dict[str, KnownReplica] = {}
        self._last_chosen: dict[str, int] = {}  # by replica: grows with each choice
        self._max_images = 0
        # Share costs per profile; otherwise measurement noise would decide the routing. A replica
        # that has not reported uses the pooled costs.
        self._costs = CostTable(default_batch_size=BatchSize(images, (2 * images,)))
        self._costs_by_profile: dict[str, CostTable] = {}
        self._charges: dict[Caller, float] = {}  # seconds: see `take_charges`

    def set_replicas(self, replicas: Collection[str], *, max_images: int) -> None:
        """Set the replicas that there are, each of which may have `max_images` images."""
        for id in self._replicas.keys() - replicas:
            self._charge_ended(self._replicas[id].images, {})
        self._replicas = {id: self._replicas.get(id) or KnownReplica() for id in replicas}
        self._last_chosen = {id: self._last_chosen.get(id, self._first(id)) for id in replicas}
        self._max_images = max_images

    def apply_report(self, id: str, wire: Wire, now: float) -> bool:
        """Update a replica from its report; return False if the report's version is unknown.

        A report may be older than what this process has sent since, or has seen leave. It may also
        be the last one again: only another number counts as news at `now`, a time in seconds.
        """
        replica = self._replicas[id]
        if replica.report and wire.get("number") == replica.report.number:
            return True
        report = ReplicaReport.from_wire(wire)
        if report is None:
            return False
        if replica.report is not None:
            self._charge_measured(replica.report.measured, report.measured)
        images = after_report(replica.images, report.remaining)
        self._charge_ended(replica.images, images)
        replica.report = report
        replica.set_images(images)
        replica.report_time, replica.is_suspect = now, False
        known = self._costs_by_profile.get(report.profile, CostTable())
        self._costs_by_profile[report.profile] = known.updated(report.costs)
        self._costs = self._costs.updated(report.costs)
        return True

    def send(self, replica: str, sample: Sample[Any], segment: StageSegment) -> float:
        """Count the image as work of the replica, if that is still there, and of no other.

        Returns the GPU seconds that it is predicted to take, in full batches.
        """
        key = key_of(sample)
        for id, other in self._replicas.items():
            if key in other.images:
                self.end(id, key)
        target = self._replicas.get(replica)
        if target is None:
            return 0.0
        costs = self._costs_of(target)
        work = remaining_work(sample, segment, costs)
        images = costs.batch_size(sample.model_key).images
        predicted = work.full_seconds(costs) / images
        sent = InFlight(work, sent_here=True, predicted=predicted)
        target.set_images({**target.images, key: sent})
        self._last_chosen[replica] = max(self._last_chosen.values(), default=0) + 1
        return predicted

    def suspect(self, ids: Collection[str]) -> None:
        """Prefer other replicas to these, which fell silent, until each sends a new report."""
        for id in ids:
            if replica := self._replicas.get(id):
                replica.is_suspect = True

    def end(self, id: str, key: str) -> None:
        """Take note that an image that was sent from here has left the replica."""
        replica = self._replicas.get(id)
        image = replica.images.get(key) if replica else None
        if replica and image and image.remaining and image.sent_here:
            self._charge_ended({key: image}, {})
            replica.set_images({**replica.images, key: InFlight(None, sent_here=True)})

    def take_charges(self) -> dict[Caller, float]:
        """Return what callers are to be charged with since the last call, in GPU seconds.

        It is what replicas have measured, for all senders, less what was predicted of images that
        were sent from here and have left, however they left.
        """
        charges, self._charges = self._charges, {}
        return charges

    def batched_seconds(self, sample: Sample[Any], segment: StageSegment) -> float:
        """Return the seconds that the image's steps take in full batches, from now on."""
        return remaining_work(sample, segment, self._costs).full_seconds(self._costs)

    def are_full(self) -> bool:
        """Return whether no replica has a place for any caller. It may be False though none has."""
        return all(
            replica.is_full(self._costs_of(replica), self._max_images)
            for replica in self._replicas.values()
        )

    def rank(self, sample: Sample[Any], segment: StageSegment) -> list[str]:
        """Return the ids of the replicas with a free place for the image, the best one first.

        Replicas that are quiet while others report, or that the image should avoid, get it only
        where every replica is like that.
        """
        key = encode_batch_key(sample.usual_batch_key)
        by_profile: dict[str | None, NewImage] = {}  # None: it has not reported
        candidates: list[Candidate] = []
        for id, replica in self._well(segment.avoid):
            profile = replica.report.profile if replica.report else None
            if (image := by_profile.get(profile)) is None:
                costs = self._costs_of(replica)
                image = NewImage.of(sample, segment, key, costs, self._max_images)
                by_profile[profile] = image
            if seconds := replica.seconds_with(image):
                candidates.append((id, *seconds))
        return rank_replicas(candidates, self._last_chosen)

    def _well(self, avoid: Collection[str]) -> Iterable[tuple[str, KnownReplica]]:
        """Return the replicas that an image may get, or all if it may get none."""
        replicas = self._replicas.items()
        newest = max((replica.report_time for _, replica in replicas), default=-inf)
        well = [
            (id, replica)
            for id, replica in replicas
            if not replica.is_suspect
            and (replica.report is None or newest - replica.report_time <= _QUIET_S)
            and id not in avoid
        ]
        return well or replicas

    def _first(self, id: str) -> int:
        """Return the order of a replica that was never chosen, another one for each sender."""
        return -crc32(f"{self._sender} {id}".encode()) if self._sender else 0

    def _charge(self, caller: Caller, seconds: float) -> None:
        self._charges[caller] = self._charges.get(caller, 0.0) + seconds

    def _charge_ended(self, images: Mapping[str, InFlight], left: Mapping[str, InFlight]) -> None:
        """Take back what was predicted of the images that are not among those left."""
        for key, image in images.items():
            if image.remaining and image.predicted and not (key in left and left[key].remaining):
                self._charge(image.remaining.caller, -image.predicted)

    def _charge_measured(self, old: Mapping[Caller, float], new: Mapping[Caller, float]) -> None:
        """Charge what two reports differ by; a caller that was forgotten begins again at 0."""
        for caller, seconds in new.items():
            known = old.get(caller, 0.0)
            self._charge(caller, seconds - known if seconds >= known else seconds)

    def _costs_of(self, replica: KnownReplica) -> CostTable:
        report = replica.report
        return self._costs_by_profile[report.profile] if report else self._costs
