"""`Fleet`: what one process knows of a stage's replicas, and where it would send an image.

It has sent some of their images itself, and each replica reports once in a while what it has, with
those of others. Knows no Ray and no clock. A report travels in plain values, so that whoever passes
it on need not know this package.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from enum import StrEnum
from typing import Any

from serve_app.core.capacity.cost_model import Prices, Turn, turn_of
from serve_app.core.capacity.routing import DEPTH, Crowd, Home, rank_homes
from serve_app.core.diffusion.sample import Leg, Sample
from serve_app.core.diffusion.spec import Stage
from serve_app.core.scheduling.step_scheduler import BatchSize, Owed, Work

_UNSEEN = 20.0  # seconds to load a model, where none was loaded yet
_LATE = 2  # reports that may have been on their way when an image came or went
Left = tuple[str, int, Turn]  # of an image: shape, steps to take, kind of each


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica has to do, by its own account."""

    number: int  # grows with each
    profile: str  # its numeric one: what is alike in replicas that should be equally fast
    left: Mapping[str, Left]  # by `key_of` an image
    models: tuple[str, ...]  # in memory, here or on the host
    prices: Prices

    @classmethod
    def of(
        cls,
        number: int,
        profile: str,
        owed: Iterable[Owed[Any]],
        models: Iterable[str],
        prices: Prices,
    ) -> "Report":
        """The report of a replica that owes this."""
        left = {key_of(one.sample): _left(one.sample, one.leg, prices) for one in owed}
        return cls(number, profile, left, tuple(models), prices)

    def packed(self) -> dict[str, Any]:
        """The same in plain values."""
        known = self.prices.known.items()
        return {
            "number": self.number,
            "profile": self.profile,
            "left": {id: [*one, *_plain(turn)] for id, (*one, turn) in self.left.items()},
            "models": list(self.models),
            "sizes": {name: [size.images, size.lanes] for name, size in self.prices.sizes.items()},
            "prices": [
                [seconds, *_plain(turn)]
                for turn, seconds in known
                if turn.work in (Work.STEP, Work.LOAD)
            ],
        }

    @classmethod
    def unpacked(cls, plain: Mapping[str, Any]) -> "Report":
        """The report that was packed."""
        known = {_turn(turn): seconds for seconds, *turn in plain["prices"]}
        return cls(
            number=plain["number"],
            profile=plain["profile"],
            left={
                id: (shape, steps, _turn(turn))
                for id, (shape, steps, *turn) in plain["left"].items()
            },
            models=tuple(plain["models"]),
            prices=Prices(known, {name: BatchSize(*two) for name, two in plain["sizes"].items()}),
        )


@dataclass(slots=True)
class _Replica:
    report: Report
    sent: dict[str, Left] = field(default_factory=dict)
    missed: Counter[str] = field(default_factory=Counter)  # reports without what was sent
    gone: Counter[str] = field(default_factory=Counter)  # reports since an image went
    crowds: dict[Hashable, Crowd] | None = None  # until something changes

    @property
    def images(self) -> int:
        """How many are there, whoever sent them."""
        return len(self.sent) + sum(
            id not in self.gone and id not in self.sent for id in self.report.left
        )

    @property
    def left(self) -> dict[str, Left]:
        """All that is there, whoever sent it."""
        known = {id: one for id, one in self.report.left.items() if id not in self.gone}
        return self.sent | known


class Fleet:
    """The replicas of a stage. Whoever sends images to them is the only writer."""

    def __init__(self, images: int) -> None:
        """So many step together, until replicas say it themselves."""
        self._replicas: dict[str, _Replica] = {}
        self._chosen = Counter[str]()  # replica: when it was chosen last
        # As reported last, by profile, for all of it: prices measured on each would differ by
        # chance, and chance would choose. Those of all are at "", for newcomers.
        self._prices = {"": Prices(sizes={"": BatchSize(images, 2 * images)})}

    def keep(self, replicas: Collection[str]) -> None:
        """These are the replicas there are."""
        self._replicas = {
            id: self._replicas.get(id) or _Replica(Report(0, "", {}, (), Prices()))
            for id in replicas
        }
        self._chosen = Counter({id: self._chosen[id] for id in replicas})

    def hear(self, id: str, packed: Mapping[str, Any]) -> None:
        """The replica has what its report says, but for what came and went since."""
        replica = self._replicas[id]
        if packed["number"] == replica.report.number:
            return
        report = Report.unpacked(packed)
        replica.report, replica.crowds = report, None
        for profile in (report.profile, ""):
            before = self._prices.get(profile, Prices())
            self._prices[profile] = Prices(
                {**before.known, **report.prices.known}, {**before.sizes, **report.prices.sizes}
            )
        for image in replica.sent:
            replica.missed[image] = 0 if image in report.left else replica.missed[image] + 1
            replica.sent[image] = report.left.get(image, replica.sent[image])
        for image in [one for one, missed in replica.missed.items() if missed > _LATE]:
            del replica.sent[image], replica.missed[image]
        for image in list(replica.gone):
            replica.gone[image] += 1
            if replica.gone[image] > _LATE:
                del replica.gone[image]

    def send(self, id: str, sample: Sample[Any], leg: Leg) -> None:
        """The sample is on its way to the replica, if that is still there, and to no other."""
        key = key_of(sample)
        for other in self._replicas:
            self.end(other, key)
        if replica := self._replicas.get(id):
            replica.sent[key] = _left(sample, leg, self._known(replica))
            replica.crowds = None
            del replica.gone[key]
            self._chosen[id] = max(self._chosen.values(), default=0) + 1

    def end(self, id: str, key: str) -> None:
        """The image is at that replica no more."""
        replica = self._replicas.get(id)
        if replica and replica.sent.pop(key, None):
            del replica.missed[key]
            replica.gone[key] = 0
            replica.crowds = None

    def alone(self, sample: Sample[Any], leg: Leg) -> float:
        """Seconds of the sample's steps, if nobody else is there."""
        prices = self._prices[""]
        _, steps, turn = _left(sample, leg, prices)
        return steps * prices.seconds(turn)

    def ranked(self, sample: Sample[Any], leg: Leg, most: int) -> list[str]:
        """The replicas that have a place for the sample, the best home first.

        Each has `most` places, and no more than `DEPTH` of its batches have: who is bound to a
        replica too early stays behind its queue, however many others come.
        """
        homes, shape = [], shape_of(sample)
        for id, replica in self._replicas.items():
            prices = self._known(replica)
            size = prices.size(sample.model)
            if replica.images >= min(most, DEPTH * size.images):
                continue
            load = 0.0
            if replica.report.number and sample.model not in replica.report.models:
                load = prices.seconds(turn_of(Work.LOAD, sample, load=sample.model)) or _UNSEEN
            if replica.crowds is None:
                replica.crowds = _crowds(replica.left.values(), prices)
            turn = prices.seconds(turn_of(Work.STEP, sample, lanes=size.rows))
            homes.append(Home(id, size.images, replica.crowds, load).open_to(shape, turn))
        return rank_homes(homes, self._chosen, shape, max(0, leg.stop - sample.index))

    def _known(self, replica: _Replica) -> Prices:
        return self._prices[replica.report.profile]


def key_of(sample: Sample[Any]) -> str:
    """The image on its leg: one replica may have both of them."""
    return f"{sample.id} {sample.stage}"


def shape_of(sample: Sample[Any]) -> str:
    """The shape as a name: see `Sample.shape`."""
    return repr(sample.shape)


def _left(sample: Sample[Any], leg: Leg, prices: Prices) -> Left:
    """What a leg comes to, in batches that are full."""
    turn = turn_of(Work.STEP, sample, lanes=prices.size(sample.model).rows)
    return shape_of(sample), max(0, leg.stop - sample.index), turn


def _crowds(left: Iterable[Left], prices: Prices) -> dict[Hashable, Crowd]:
    crowds = dict[Hashable, Crowd]()
    for shape, steps, turn in left:
        known = crowds.get(shape) or Crowd(0, 0, prices.seconds(turn))
        crowds[shape] = replace(known, steps=known.steps + steps, longest=max(known.longest, steps))
    return crowds


def _plain(turn: Turn) -> list[Any]:
    return [str(one) if isinstance(one, StrEnum) else one for one in astuple(turn)]


def _turn(plain: Sequence[Any]) -> Turn:
    work, stage, *rest = plain
    return Turn(Work(work), Stage(stage), *rest)
