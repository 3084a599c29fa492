"""The autoscaler as Ray Serve's autoscaling policy of the whole application.

It makes no decision: from what the ingress replicas report, it makes stage loads for core's
autoscaler. Serve's controller pickles this module by value and imports what it imports, so its
imports must stay light.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, cast

from ray.serve.config import AutoscalingContext

from serve_app.core.capacity.autoscaler import (
    DEPRECATED_TARGET_NAMES,
    Autoscaler,
    ScalingTargets,
    StageLoad,
)
from serve_app.core.capacity.demand import Demand, from_wire, stage_load, to_wire
from serve_app.core.diffusion.spec import Stage

logger = logging.getLogger("aura.autoscaling")

# Among an ingress replica's reports: how many replicas the stages may have together.
MAX_TOTAL_REPLICAS = "max_total_replicas"
_INGRESS = "Ingress"
_STAGES = {  # by deployment
    "BaseGenerator": (Stage.BASE,),
    "Refiner": (Stage.REFINER,),
    "BaseAndRefiner": (Stage.BASE, Stage.REFINER),
}
_REPORTED = {MAX_TOTAL_REPLICAS, *to_wire(dict.fromkeys(Stage, Demand()))}  # Serve adds its own
Contexts = Mapping[Any, AutoscalingContext]  # by DeploymentID
States = dict[Any, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What the policy remembers; Serve keeps it with the ingress."""

    autoscaler: Autoscaler
    reporters: frozenset[Any]  # the ingress replicas that reported


class OwedWorkAutoscaler:
    """Scales the stages by the GPU time that is owed and arrives, and the ingress by its requests.

    The arguments are the fields of `ScalingTargets`, in `policy_kwargs` of a serve config.
    """

    def __init__(self, **targets: float) -> None:
        self._targets = ScalingTargets(**_current_names(targets))

    def __call__(self, contexts: Contexts) -> tuple[dict[Any, int], States]:
        """Return the number of replicas of each deployment, and the state to remember.

        Until an ingress replica has reported, every stage keeps the replicas that it has.
        """
        by_name = {context.deployment_name: context for context in contexts.values()}
        targets = {id: context.target_num_replicas for id, context in contexts.items()}
        ingress = by_name.get(_INGRESS)
        if ingress is None:
            return targets, {}
        targets[ingress.deployment_id] = _ingress_replicas(ingress)
        state = ingress.policy_state.get("state") or PolicyState(Autoscaler(), frozenset())
        if reports := _latest_reports(ingress):
            stages = {
                stages[0]: by_name[name] for name, stages in _STAGES.items() if name in by_name
            }
            now = cast(float, ingress.current_time)  # Serve always sets it
            state = self._observe(state, stages, reports, now)
            replicas = state.autoscaler.targets
            targets |= {context.deployment_id: replicas[stage] for stage, context in stages.items()}
        return targets, {ingress.deployment_id: {"state": state}}

    def _observe(
        self,
        state: PolicyState,
        stages: Mapping[Stage, AutoscalingContext],
        reports: Mapping[Any, Mapping[str, float]],
        now: float,
    ) -> PolicyState:
        loads = {stage: _load(context, reports.values()) for stage, context in stages.items()}
        limits = [
            int(numbers[MAX_TOTAL_REPLICAS])
            for numbers in reports.values()
            if MAX_TOTAL_REPLICAS in numbers
        ]
        autoscaler, reporters = state.autoscaler, frozenset(reports)
        if reporters != state.reporters:
            # Totals that other replicas counted before they reported are not arriving work.
            autoscaler = replace(autoscaler, arrived_totals={})
        # While Serve redeploys, old and new replicas may report two limits: the smaller one holds.
        limit = min(limits, default=None)
        return PolicyState(autoscaler.observe(loads, now, self._targets, limit), reporters)


class OwedWork(OwedWorkAutoscaler):
    """The old name of `OwedWorkAutoscaler`, understood for one release."""

    def __init__(self, **targets: float) -> None:
        logger.warning(
            "the autoscaling policy %s:OwedWork is deprecated; use %s:OwedWorkAutoscaler",
            __name__,
            __name__,
        )
        super().__init__(**targets)


def _current_names(targets: Mapping[str, float]) -> dict[str, float]:
    """Return the targets under their current names, with a warning for each old one."""
    current = {}
    for name, value in targets.items():
        new_name = DEPRECATED_TARGET_NAMES.get(name, name)
        if new_name != name:
            logger.warning("policy_kwargs.%s is deprecated; use %s", name, new_name)
        if new_name in current:
            raise ValueError(f"{new_name} is given twice, once under an old name")
        current[new_name] = value
    return current


def _latest_reports(ingress: AutoscalingContext) -> dict[Any, dict[str, float]]:
    """Return the latest numbers of each ingress replica that has reported any."""
    latest: dict[Any, dict[str, float]] = {}
    for name, by_replica in (ingress.raw_metrics or {}).items():
        for replica, series in by_replica.items():
            if series and name in _REPORTED:
                latest.setdefault(replica, {})[name] = series[-1].value
    return latest


def _load(context: AutoscalingContext, reports: Collection[Mapping[str, float]]) -> StageLoad:
    """Return the load of a stage, from the reports of all ingress replicas.

    An ingress replica that is being removed no longer reports. Its last images are known only from
    the requests that Serve counts.
    """
    stages = _STAGES[context.deployment_name]
    demand = sum((from_wire(numbers, stages) for numbers in reports), Demand())
    if len(stages) > 1:
        demand = replace(demand, upstream=0.0)  # these very replicas run both stages
    if not demand.images and context.total_num_requests > 0:
        demand += Demand(images=1)
    return stage_load(
        demand,
        replicas=context.target_num_replicas,
        min_replicas=context.capacity_adjusted_min_replicas,
        max_replicas=context.capacity_adjusted_max_replicas,
    )


def _ingress_replicas(ingress: AutoscalingContext) -> int:
    """Return the number of ingress replicas as Serve itself computes it: by ongoing requests."""
    config: Any = ingress.config
    requests_per_replica: float = config.get_target_ongoing_requests()
    return max(1, ceil(ingress.total_num_requests / requests_per_replica))
