"""`Fleet`: what one process knows of a stage's replicas, and where it would send an image.

It has sent some of their images itself, and each replica reports once in a while what it has, with
those of others. Knows no Ray and no clock. A report travels in plain values, so that whoever passes
it on need not know this package.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.core.capacity.cost_model import CostTable, TurnKind, turn_kind
from serve_app.core.capacity.routing import MAX_QUEUED_BATCHES, KeyLoad, ReplicaLoad, rank_replicas
from serve_app.core.diffusion.keys import ModelKey
from serve_app.core.diffusion.sample import Sample, StageSegment
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.work import BatchSize, PendingWork, WorkKind

_DEFAULT_LOAD_SECONDS = 20.0  # seconds to load a model, where none was loaded yet
_MAX_MISSED_REPORTS = 2  # reports that may have been on their way when an image came or went
RemainingWork = tuple[str, int, TurnKind]  # of an image: shape, steps to take, kind of each


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica has to do, by its own account."""

    number: int  # grows with each
    profile: str | None  # its numeric one: what is alike in replicas that should be equally fast
    remaining: Mapping[str, RemainingWork]  # by `key_of` an image
    models: tuple[ModelKey, ...]  # in memory, here or on the host
    costs: CostTable

    @classmethod
    def of(
        cls,
        number: int,
        profile: str | None,
        owed: Iterable[PendingWork[Any]],
        models: Iterable[ModelKey],
        prices: CostTable,
    ) -> "ReplicaReport":
        """The report of a replica that owes this."""
        left = {
            key_of(one.sample): _remaining_work(one.sample, one.segment, prices) for one in owed
        }
        return cls(number, profile, left, tuple(models), prices)

    def to_wire(self) -> dict[str, Any]:
        """The same in plain values."""
        known = self.costs.seconds_by_turn.items()
        return {
            "number": self.number,
            "profile": self.profile,
            "left": {id: [*one, *_plain(turn)] for id, (*one, turn) in self.remaining.items()},
            "models": [[str(model.stage), model.name] for model in self.models],
            "sizes": [
                [str(model.stage), model.name, size.images, size.lanes]
                for model, size in self.costs.batch_sizes.items()
            ],
            "prices": [
                [seconds, *_plain(turn)]
                for turn, seconds in known
                if turn.work in (WorkKind.STEP, WorkKind.LOAD)
            ],
        }

    @classmethod
    def from_wire(cls, plain: Mapping[str, Any]) -> "ReplicaReport":
        """The report that was packed."""
        known = {_turn(turn): seconds for seconds, *turn in plain["prices"]}
        return cls(
            number=plain["number"],
            profile=plain["profile"],
            remaining={
                id: (shape, steps, _turn(turn))
                for id, (shape, steps, *turn) in plain["left"].items()
            },
            models=tuple(ModelKey(Stage(stage), name) for stage, name in plain["models"]),
            costs=CostTable(
                known,
                {
                    ModelKey(Stage(stage), name): BatchSize(images, lanes)
                    for stage, name, images, lanes in plain["sizes"]
                },
            ),
        )


@dataclass(slots=True)
class _Replica:
    report: ReplicaReport
    sent: dict[str, RemainingWork] = field(default_factory=dict)
    missed_reports: Counter[str] = field(default_factory=Counter)  # reports without what was sent
    departed: Counter[str] = field(default_factory=Counter)  # reports since an image went
    loads_by_key: dict[Hashable, KeyLoad] | None = None  # until something changes

    @property
    def images(self) -> int:
        """How many are there, whoever sent them."""
        return len(self.sent) + sum(
            id not in self.departed and id not in self.sent for id in self.report.remaining
        )

    @property
    def remaining(self) -> dict[str, RemainingWork]:
        """All that is there, whoever sent it."""
        known = {id: one for id, one in self.report.remaining.items() if id not in self.departed}
        return self.sent | known


class Fleet:
    """The replicas of a stage. Whoever sends images to them is the only writer."""

    def __init__(self, images: int) -> None:
        """So many step together, until replicas say it themselves."""
        self._replicas: dict[str, _Replica] = {}
        self._chosen = Counter[str]()  # replica: when it was chosen last
        # As reported last, by profile, for all of it: prices measured on each would differ by
        # chance, and chance would choose. Those of all are at None, for newcomers.
        everywhere = CostTable(default_batch_size=BatchSize(images, 2 * images))
        self._costs: dict[str | None, CostTable] = {None: everywhere}

    def set_replicas(self, replicas: Collection[str]) -> None:
        """These are the replicas there are."""
        self._replicas = {
            id: self._replicas.get(id) or _Replica(ReplicaReport(0, None, {}, (), CostTable()))
            for id in replicas
        }
        self._chosen = Counter({id: self._chosen[id] for id in replicas})

    def apply_report(self, id: str, packed: Mapping[str, Any]) -> None:
        """The replica has what its report says, but for what came and went since."""
        replica = self._replicas[id]
        if packed["number"] == replica.report.number:
            return
        report = ReplicaReport.from_wire(packed)
        replica.report, replica.loads_by_key = report, None
        for profile in (report.profile, None):
            before = self._costs.get(profile, CostTable())
            self._costs[profile] = replace(
                before,
                seconds_by_turn={**before.seconds_by_turn, **report.costs.seconds_by_turn},
                batch_sizes={**before.batch_sizes, **report.costs.batch_sizes},
            )
        for image in replica.sent:
            replica.missed_reports[image] = (
                0 if image in report.remaining else replica.missed_reports[image] + 1
            )
            replica.sent[image] = report.remaining.get(image, replica.sent[image])
        for image in [
            one for one, missed in replica.missed_reports.items() if missed > _MAX_MISSED_REPORTS
        ]:
            del replica.sent[image], replica.missed_reports[image]
        for image in list(replica.departed):
            replica.departed[image] += 1
            if replica.departed[image] > _MAX_MISSED_REPORTS:
                del replica.departed[image]

    def send(self, id: str, sample: Sample[Any], leg: StageSegment) -> None:
        """The sample is on its way to the replica, if that is still there, and to no other."""
        key = key_of(sample)
        for other in self._replicas:
            self.end(other, key)
        if replica := self._replicas.get(id):
            replica.sent[key] = _remaining_work(sample, leg, self._costs_of(replica))
            replica.loads_by_key = None
            del replica.departed[key]
            self._chosen[id] = max(self._chosen.values(), default=0) + 1

    def end(self, id: str, key: str) -> None:
        """The image is at that replica no more."""
        replica = self._replicas.get(id)
        if replica and replica.sent.pop(key, None):
            del replica.missed_reports[key]
            replica.departed[key] = 0
            replica.loads_by_key = None

    def isolated_seconds(self, sample: Sample[Any], leg: StageSegment) -> float:
        """Seconds of the sample's steps, if nobody else is there."""
        prices = self._costs[None]
        _, steps, turn = _remaining_work(sample, leg, prices)
        return steps * prices.seconds(turn)

    def rank(self, sample: Sample[Any], leg: StageSegment, max_images: int) -> list[str]:
        """The replicas that have a place for the sample, the best home first.

        Each has `most` places, and no more than `DEPTH` of its batches have: who is bound to a
        replica too early stays behind its queue, however many others come.
        """
        homes, shape = [], shape_of(sample)
        for id, replica in self._replicas.items():
            prices = self._costs_of(replica)
            size = prices.batch_size(sample.model_key)
            if replica.images >= min(max_images, MAX_QUEUED_BATCHES * size.images):
                continue
            load = 0.0
            if replica.report.number and sample.model_key not in replica.report.models:
                load = (
                    prices.seconds(turn_kind(WorkKind.LOAD, sample, load=sample.model_key))
                    or _DEFAULT_LOAD_SECONDS
                )
            if replica.loads_by_key is None:
                replica.loads_by_key = _loads_by_key(replica.remaining.values(), prices)
            turn = prices.seconds(turn_kind(WorkKind.STEP, sample, lanes=size.rows))
            homes.append(
                ReplicaLoad(id, size.images, replica.loads_by_key, load).with_key(shape, turn)
            )
        return rank_replicas(homes, self._chosen, shape, max(0, leg.stop - sample.index))

    def _costs_of(self, replica: _Replica) -> CostTable:
        return self._costs[replica.report.profile]


def key_of(sample: Sample[Any]) -> str:
    """The image on its leg: one replica may have both of them."""
    return f"{sample.id} {sample.stage}"


def shape_of(sample: Sample[Any]) -> str:
    """The shape as a name: see `Sample.shape`."""
    return repr(sample.batch_key)


def _remaining_work(sample: Sample[Any], leg: StageSegment, prices: CostTable) -> RemainingWork:
    """What a leg comes to, in batches that are full."""
    turn = turn_kind(WorkKind.STEP, sample, lanes=prices.batch_size(sample.model_key).rows)
    return shape_of(sample), max(0, leg.stop - sample.index), turn


def _loads_by_key(left: Iterable[RemainingWork], prices: CostTable) -> dict[Hashable, KeyLoad]:
    crowds = dict[Hashable, KeyLoad]()
    for shape, steps, turn in left:
        known = crowds.get(shape) or KeyLoad(0, 0, prices.seconds(turn))
        crowds[shape] = replace(
            known, steps=known.steps + steps, max_steps=max(known.max_steps, steps)
        )
    return crowds


def _plain(turn: TurnKind) -> list[Any]:
    stage, name = turn.model
    return [str(turn.work), str(stage), name, turn.width, turn.height, turn.rows, turn.loras]


def _turn(plain: Sequence[Any]) -> TurnKind:
    work, stage, name, *rest = plain
    return TurnKind(WorkKind(work), ModelKey(Stage(stage), name), *rest)
