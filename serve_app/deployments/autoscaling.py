"""Core's scaling decision as Serve's autoscaling policy of the whole application.

Knows no samples and makes no choice: of what ingress replicas tell, it makes looks for the helm.
Serve's controller gets this module by value, and imports what it imports: keep that light.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from ray.serve.config import AutoscalingContext

from serve_app.core.capacity.autoscaler import Autoscaler, ScalingTargets, StageLoad
from serve_app.core.capacity.demand import Demand, from_wire, stage_load, to_wire
from serve_app.core.diffusion.spec import Stage

MAX_TOTAL_REPLICAS = (
    "pool"  # of an ingress's numbers: the replicas that those stages may have together
)
_INGRESS = "Ingress"
_STAGES = {  # what runs where
    "BaseGenerator": (Stage.BASE,),
    "Refiner": (Stage.REFINER,),
    "BaseAndRefiner": (Stage.BASE, Stage.REFINER),
}
_NUMBERS = {MAX_TOTAL_REPLICAS, *to_wire(dict.fromkeys(Stage, Demand()))}  # Serve may add its own
Contexts = Mapping[Any, AutoscalingContext]  # by DeploymentID
States = dict[Any, dict[str, Any]]


class OwedWorkAutoscaler:
    """Scales the stages by the GPU time that is owed and arrives, the ingress by its requests.

    `aims` are those of `core.scaling.Aims`. The helm is kept in the ingress's policy state.
    """

    def __init__(self, **aims: float) -> None:
        self._aims = ScalingTargets(**aims)

    def __call__(self, contexts: Contexts) -> tuple[dict[Any, int], States]:
        """How many replicas each deployment should have, and what to remember of it.

        While no ingress has told anything, every stage keeps what it has.
        """
        by_name = {context.deployment_name: context for context in contexts.values()}
        targets = {id: context.target_num_replicas for id, context in contexts.items()}
        ingress = by_name.get(_INGRESS)
        if ingress is None:
            return targets, {}
        targets[ingress.deployment_id] = _for_callers(ingress)
        helm, tellers = ingress.policy_state.get("helm", Autoscaler()), set[Any]()
        told = _told(ingress)
        if told:
            scaled = {stages[0]: by_name[n] for n, stages in _STAGES.items() if n in by_name}
            looks = {stage: _look(context, told.values()) for stage, context in scaled.items()}
            pools = [
                int(numbers[MAX_TOTAL_REPLICAS])
                for numbers in told.values()
                if MAX_TOTAL_REPLICAS in numbers
            ]
            pool = min(pools, default=None)  # the old and the new one, while Serve redeploys
            tellers = set(told)
            if tellers != ingress.policy_state.get("tellers"):
                helm = replace(
                    helm, arrived_totals={}
                )  # what others count began before they were heard
            helm = helm.observe(looks, ingress.current_time, self._aims, pool)
            wanted = helm.targets
            targets |= {one.deployment_id: wanted[stage] for stage, one in scaled.items()}
        return targets, {ingress.deployment_id: {"helm": helm, "tellers": tellers}}


def _told(ingress: AutoscalingContext) -> dict[Any, dict[str, float]]:
    """The latest numbers of each ingress replica that told any."""
    latest: dict[Any, dict[str, float]] = {}
    for name, by_replica in (ingress.raw_metrics or {}).items():
        for replica, series in by_replica.items():
            if series and name in _NUMBERS:
                latest.setdefault(replica, {})[name] = series[-1].value
    return latest


def _look(context: AutoscalingContext, told: Collection[Mapping[str, float]]) -> StageLoad:
    """A stage, by what all ingress replicas want of it.

    One that is retiring tells nothing any more: its last images are those that Serve counts.
    """
    stages = _STAGES[context.deployment_name]
    demand = sum((from_wire(numbers, stages) for numbers in told), Demand())
    if len(stages) > 1:
        demand = replace(demand, upstream=0.0)  # from no other replica than these
    if not demand.images and context.total_num_requests > 0:
        demand += Demand(images=1)
    return stage_load(
        demand,
        replicas=context.target_num_replicas,
        min_replicas=context.capacity_adjusted_min_replicas,
        max_replicas=context.capacity_adjusted_max_replicas,
    )


def _for_callers(ingress: AutoscalingContext) -> int:
    """As Serve itself does it: a replica for every so many requests."""
    config: Any = ingress.config
    each: float = config.get_target_ongoing_requests()
    return max(1, ceil(ingress.total_num_requests / each))
