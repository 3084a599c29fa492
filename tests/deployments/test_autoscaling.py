"""The policy as Serve's controller calls it, with Serve's own contexts and wrapper; no Ray runs."""

import subprocess
import sys
from typing import Any, cast

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentID,
    ReplicaID,
    TimeStampedValue,
)
from ray.serve.autoscaling_policy import _apply_app_level_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serve_app.config.app_args import DeploymentScale
from serve_app.config.lint import POLICY, SECTIONS
from serve_app.core.capacity.demand import Demand, to_wire
from serve_app.core.diffusion.spec import Stage
from serve_app.deployments.autoscaling import MAX_TOTAL_REPLICAS
from serve_app.deployments.replica_counts import ingress_replicas, stage_replicas

AIMS = {"target_drain_s": 10, "target_utilization": 0.8, "downscale_delay_s": 60}
ONE = DeploymentScale()
STAGE_SCALE = DeploymentScale(min_replicas=1, max_replicas=3)


def config_of(scale: DeploymentScale, requests: int) -> AutoscalingConfig:
    """A config in which Serve, whose clock nobody tells here, waits for nothing."""
    config = ingress_replicas(scale.min_replicas, scale.max_total, requests)["autoscaling_config"]
    at_once = {"upscale_delay_s": 0, "downscale_delay_s": 0}
    return cast(AutoscalingConfig, config.model_copy(update=at_once))


class Application:
    """What the controller holds of an application, and its policy, at times that are told."""

    def __init__(self, *, ingress: DeploymentScale = ONE, **stages: DeploymentScale) -> None:
        policy = AutoscalingPolicy(policy_function=POLICY, policy_kwargs=AIMS)
        # the class comes out of a pickle, as in the controller
        self._policy: Any = _apply_app_level_autoscaling_config(_resolve_policy_callable(policy))
        self._configs = {"Ingress": config_of(ingress, 1000)} | {
            name: config_of(scale, 4) for name, scale in stages.items()
        }
        self.replicas = {name: config.min_replicas for name, config in self._configs.items()}
        self.running = dict(self.replicas)
        self.requests = dict.fromkeys(self._configs, 0.0)
        self._states: Any = {}

    def told(self, now: float, *told: dict[str, float], **more: Any) -> dict[str, int]:
        """How many replicas there are to be, after so many ingress replicas have told so much."""
        metrics: dict[str, dict[ReplicaID, Any]] = {}
        id = DeploymentID(name="Ingress", app_name="aura")
        for number, numbers in enumerate(told):
            replica = ReplicaID(unique_id=str(number), deployment_id=id)
            for name, value in (numbers | more).items():
                series = [TimeStampedValue(now - 2, 1e6), TimeStampedValue(now - 1, value)]
                metrics.setdefault(name, {})[replica] = series
        contexts = {}
        for name, config in self._configs.items():
            one = self._context(name, config, now, metrics if name == "Ingress" else {})
            contexts[one.deployment_id] = one
        decided, self._states = self._policy(contexts)
        for id, wanted in decided.items():
            most = self._configs[id.name].max_replicas
            self.replicas[id.name] = min(most, max(self._configs[id.name].min_replicas, wanted))
        self.running = dict(self.replicas)
        return {name: count for name, count in self.replicas.items() if name != "Ingress"}

    def _context(
        self, name: str, config: AutoscalingConfig, now: float, metrics: Any
    ) -> AutoscalingContext:
        id = DeploymentID(name=name, app_name="aura")
        return AutoscalingContext(
            deployment_id=id,
            deployment_name=name,
            app_name="aura",
            current_num_replicas=self.running[name],
            target_num_replicas=self.replicas[name],
            running_replicas=[],
            total_num_requests=lambda: self.requests[name],
            total_queued_requests=lambda: 0.0,
            aggregated_metrics=dict,
            raw_metrics=lambda: metrics,
            capacity_adjusted_min_replicas=config.min_replicas,
            capacity_adjusted_max_replicas=config.max_replicas,
            policy_state=dict(self._states.get(id, {})),
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=config,
        )


def owing(base: float, refiner: float = 0.0) -> dict[str, float]:
    """What an ingress replica tells whose images need so many GPU-seconds in each stage."""
    return to_wire(
        {
            Stage.BASE: Demand(images=float(base > 0), owed=base),
            Stage.REFINER: Demand(images=float(base + refiner > 0), owed=refiner),
        }
    )


def two_stages(**more: DeploymentScale) -> Application:
    return Application(BaseGenerator=STAGE_SCALE, Refiner=STAGE_SCALE, **more)


def stages(base: int, refiner: int) -> dict[str, int]:
    return {"BaseGenerator": base, "Refiner": refiner}


def test_the_policy_knows_the_names_of_the_deployments() -> None:
    from serve_app.deployments import autoscaling

    named = {autoscaling._INGRESS, *autoscaling._STAGES}
    assert named == set(SECTIONS) - {"Ledger"}


def test_replicas_follow_the_owed_work_of_each_stage_at_once() -> None:
    one = two_stages()
    assert one.told(0, owing(25, 5)) == stages(3, 1)
    assert one.told(1, owing(500, 15)) == stages(3, 2)


def test_what_all_ingress_replicas_owe_counts_together() -> None:
    assert two_stages().told(0, owing(9), owing(9)) == stages(2, 1)


def test_what_comes_from_another_stage_is_begun_at_once_where_both_are_on_one_replica() -> None:
    demand = to_wire({Stage.BASE: Demand(4, 5.0), Stage.REFINER: Demand(4, 30.0, upstream=30.0)})
    assert two_stages().told(0, demand) == stages(1, 1)
    one = Application(BaseAndRefiner=DeploymentScale(min_replicas=1, max_replicas=9))
    assert one.told(0, demand) == {"BaseAndRefiner": 4}


def test_an_ingress_that_is_heard_late_brings_no_flood_of_work() -> None:
    one = Application(BaseGenerator=DeploymentScale(min_replicas=1, max_replicas=40))

    def numbers(now: int) -> dict[str, float]:
        return to_wire({Stage.BASE: Demand(1, 0.5, arrived_total=20_000 + 0.5 * now)})

    for now in range(60):
        told = [numbers(now)] * (1 if now < 5 or 30 <= now < 35 else 2)
        assert one.told(now, *told)["BaseGenerator"] <= 2


def test_fewer_are_kept_when_they_were_enough_for_a_while() -> None:
    one = two_stages()
    one.told(0, owing(30))
    assert one.told(1, owing(0)) == stages(3, 1)
    assert one.told(60, owing(0)) == stages(3, 1)
    assert one.told(61, owing(0)) == stages(1, 1)


def test_work_that_arrives_keeps_replicas_though_nothing_is_owed_for_long() -> None:
    one = two_stages()
    for now in range(200):
        demand = {Stage.BASE: Demand(1, 0.5, arrived_total=2.0 * now), Stage.REFINER: Demand()}
        found = one.told(now, to_wire(demand))
    assert found == stages(3, 1)  # two GPU-seconds a second, of which 0.8 are what one should do


def test_before_anybody_tells_anything_all_keep_what_they_have() -> None:
    one = two_stages()
    one.replicas |= {"BaseGenerator": 2}
    for now in (0, 50, 100, 150):
        assert one.told(now) == stages(2, 1)
        assert one.told(now + 1, {RUNNING_REQUESTS_KEY: 7.0}) == stages(2, 1)  # Serve's own


def test_after_a_restart_the_policy_goes_on_from_the_replicas_that_there_are() -> None:
    one = two_stages()
    one.replicas |= {"BaseGenerator": 3}
    assert one.told(0, owing(0)) == stages(3, 1)
    assert one.told(60, owing(0)) == stages(1, 1)


def test_a_pool_is_never_exceeded_and_moves_to_the_stage_with_the_work() -> None:
    one = two_stages()
    seen = [one.told(0, owing(100, 5), **{MAX_TOTAL_REPLICAS: 4.0})]
    seen += [one.told(now, owing(5, 100), **{MAX_TOTAL_REPLICAS: 4.0}) for now in range(1, 100)]
    assert seen[0] == stages(3, 1)
    assert seen[-1] == stages(1, 3)
    assert all(sum(each.values()) <= 4 for each in seen)


def test_while_serve_redeploys_the_smaller_pool_counts() -> None:
    told = [owing(100, 100) | {MAX_TOTAL_REPLICAS: 6.0}, owing(0, 0) | {MAX_TOTAL_REPLICAS: 4.0}]
    assert sum(two_stages().told(0, *told).values()) == 4


def test_both_stages_on_one_deployment_are_scaled_by_the_work_of_both() -> None:
    one = Application(BaseAndRefiner=DeploymentScale(max_replicas=8))
    assert one.told(0, owing(15, 14)) == {"BaseAndRefiner": 3}
    assert one.told(0, owing(100, 100), **{MAX_TOTAL_REPLICAS: 4.0}) == {"BaseAndRefiner": 4}


def test_a_stage_that_does_not_scale_is_left_alone() -> None:
    assert Application(Refiner=STAGE_SCALE).told(0, owing(100, 15)) == {"Refiner": 2}
    assert Application().told(0, owing(100, 15)) == {}


RESTING = DeploymentScale(min_replicas=0, max_replicas=2)


def test_a_resting_refiner_starts_for_the_first_image_though_its_time_is_unknown() -> None:
    one = Application(BaseGenerator=STAGE_SCALE, Refiner=RESTING)
    assert one.told(0, owing(0)) == stages(1, 0)
    known = to_wire({Stage.BASE: Demand(1), Stage.REFINER: Demand(1)})
    assert one.told(1, known) == stages(1, 1)
    assert one.told(2, owing(0)) == stages(1, 1)
    assert one.told(62, owing(0)) == stages(1, 0)


def test_a_refiner_that_only_a_retiring_ingress_waits_for_starts_and_stays() -> None:
    one = Application(BaseGenerator=STAGE_SCALE, Refiner=RESTING)
    one.requests["Refiner"] = 0.2  # at handles, as Serve counts them: a mean
    for now in range(100):
        assert one.told(now, owing(0)) == stages(1, 1)


def test_a_resting_refiner_gets_a_card_from_a_base_that_has_them_all() -> None:
    one = Application(BaseGenerator=DeploymentScale(max_replicas=4), Refiner=RESTING)
    assert one.told(0, owing(100), **{MAX_TOTAL_REPLICAS: 4.0}) == stages(3, 1)
    one = Application(BaseGenerator=DeploymentScale(max_replicas=4), Refiner=RESTING)
    only_base = to_wire({Stage.BASE: Demand(9, 100.0)})
    assert one.told(0, only_base, **{MAX_TOTAL_REPLICAS: 4.0}) == stages(4, 0)
    assert one.told(1, owing(100, 2), **{MAX_TOTAL_REPLICAS: 4.0}) == stages(3, 1)


@pytest.mark.parametrize(("requests", "replicas"), [(0, 1), (1000, 1), (1001, 2), (9000, 3)])
def test_the_ingress_is_scaled_by_its_requests(requests: int, replicas: int) -> None:
    one = two_stages(ingress=DeploymentScale(max_replicas=3))
    one.requests["Ingress"] = requests
    one.told(0, owing(0))
    assert one.replicas["Ingress"] == replicas


def test_numbers_are_told_every_second_and_what_the_policy_says_is_done_at_once() -> None:
    stage = stage_replicas(1, 3, 4)["autoscaling_config"]
    ingress = ingress_replicas(1, 1, 1000)["autoscaling_config"]
    for config in (stage, ingress):
        assert config.metrics_interval_s == 1 < config.look_back_period_s
    assert (stage.upscale_delay_s, stage.downscale_delay_s) == (0, 0)
    assert (stage.min_replicas, stage.max_replicas) == (1, 3)
    assert (ingress.min_replicas, ingress.max_replicas) == (1, 1)
    assert stage_replicas(2, 2, 4) == {"num_replicas": 2}


def test_the_controller_needs_neither_torch_nor_the_app_to_load_the_policy() -> None:
    code = (
        "import sys, serve_app.deployments.autoscaling; "
        "print({'torch', 'serve_app.app', 'serve_app.config'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
