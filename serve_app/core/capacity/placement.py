"""Whether replicas fit on the nodes of a cluster: what they request, and what there is.

Ray places a replica on one node. A part of a GPU must lie on one GPU, and whole GPUs must be empty.
The largest requests are placed first, each on the first node that has room: where this finds no
room for a replica of the few that a service starts with, Ray does not either.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

GPU, CPU = "GPU", "CPU"
_ROUNDING = 1e-6  # of sums of fractions; Ray counts in 1/10000

Resources = Mapping[str, float]  # amounts by Ray's names: CPU, GPU, memory or a name of one's own


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes that Ray has now, and whether more may join: by an autoscaler or by hand."""

    nodes: tuple[Resources, ...]
    may_grow: bool = False

    @property
    def gpus(self) -> float:
        """The GPUs of all nodes."""
        return sum(node.get(GPU, 0) for node in self.nodes)

    @property
    def cpus(self) -> float:
        """The CPUs of all nodes."""
        return sum(node.get(CPU, 0) for node in self.nodes)


@dataclass(frozen=True, slots=True)
class ReplicaDemand:
    """The replicas that a deployment starts with, and what each of them requests from Ray."""

    deployment: str
    count: int
    resources: Resources

    @property
    def requested(self) -> Resources:
        """The resources of which it requests anything."""
        return {name: amount for name, amount in self.resources.items() if amount > 0}


@dataclass(frozen=True, slots=True)
class Shortage:
    """A deployment whose replicas don't all fit, on nodes with these resources in all."""

    demand: ReplicaDemand
    placed: int  # replicas of it that do fit
    nodes: int
    available: Resources  # of the kinds that the demand names, in the whole cluster

    @property
    def lacks_gpu(self) -> bool:
        """Whether it is for a GPU, and there is none."""
        return bool(self.demand.resources.get(GPU)) and self.available.get(GPU, 0) <= 0

    def __str__(self) -> str:
        count = self.demand.count
        each = "1 replica needs" if count == 1 else f"{count} replicas need"
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        room = "" if not self.placed else f", with room for {self.placed}"
        return (
            f"{each} {amounts(self.demand.resources)}{'' if count == 1 else ' each'}, and Ray has "
            f"{amounts(self.available)} on {nodes}{room}"
        )


def find_shortage(demands: Iterable[ReplicaDemand], nodes: Sequence[Resources]) -> Shortage | None:
    """Return the first deployment that doesn't fit beside the larger ones; None if all do."""
    free = [_Node.of(node) for node in nodes]
    needs = [replace(demand, resources=demand.requested) for demand in demands]
    for demand in sorted(needs, key=_size):
        resources = demand.resources
        for number in range(demand.count):
            if not any(node.take(resources) for node in free):
                available = {name: sum(node.get(name, 0) for node in nodes) for name in resources}
                return Shortage(demand, number, len(nodes), available)
    return None


def amounts(resources: Resources) -> str:
    """Return resources in words, as in "1 GPU and 0.1 CPU"."""
    listed = [f"{amount:g} {name}" for name, amount in resources.items()]
    return " and ".join(filter(None, (", ".join(listed[:-1]), *listed[-1:]))) or "nothing"


@dataclass(slots=True)
class _Node:
    """What is free on a node while replicas are placed."""

    amounts: dict[str, float]
    gpus: list[float]  # the free part of each

    @classmethod
    def of(cls, resources: Resources) -> Self:
        amounts = {name: amount for name, amount in resources.items() if name != GPU}
        return cls(amounts, [1.0] * int(resources.get(GPU, 0)))

    def take(self, resources: Resources) -> bool:
        """Take the resources if there is room for all of them."""
        gpus = resources.get(GPU, 0)
        chosen = self._gpus_for(gpus)
        others = {name: amount for name, amount in resources.items() if name != GPU}
        if chosen is None or any(
            self.amounts.get(name, 0) + _ROUNDING < amount for name, amount in others.items()
        ):
            return False
        for index in chosen:
            self.gpus[index] -= min(gpus, 1.0)
        for name, amount in others.items():
            self.amounts[name] -= amount
        return True

    def _gpus_for(self, amount: float) -> list[int] | None:
        """Return the GPUs that a replica would get; None if they are not free."""
        part, number = (amount, 1) if amount < 1 else (1.0, int(amount))
        if not amount:
            return []
        fitting = [i for i, free in enumerate(self.gpus) if free + _ROUNDING >= part]
        return fitting[:number] if len(fitting) >= number else None


def _size(demand: ReplicaDemand) -> tuple[float, ...]:
    """Return the order of placement: most GPUs first, then most CPUs."""
    resources = demand.resources
    return (-resources.get(GPU, 0), -len(resources), -resources.get(CPU, 0))
