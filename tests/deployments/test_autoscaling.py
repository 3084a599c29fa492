"""The policy as Serve's controller calls it, with Serve's own contexts and wrapper; no Ray runs."""

import logging
import subprocess
import sys
from typing import Any, cast

import pytest
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serve_app.config.app_args import DeploymentScale
from serve_app.config.lint import POLICY, SECTIONS
from serve_app.core.capacity.demand import Demand, to_wire
from serve_app.core.diffusion.spec import Stage
from serve_app.deployments import autoscaling
from serve_app.deployments.autoscaling import MAX_TOTAL_REPLICAS
from serve_app.deployments.scaling_options import ingress_scaling, stage_scaling
from tests.support.ray_private import (
    RUNNING_REQUESTS_KEY,
    DeploymentID,
    ReplicaID,
    TimeStampedValue,
    apply_autoscaling_config,
    resolve_policy,
)

TARGETS = {"target_drain_s": 10, "target_utilization": 0.8, "downscale_delay_s": 60}
SINGLE = DeploymentScale()
UP_TO_THREE = DeploymentScale(min_replicas=1, max_replicas=3)
OLD_POLICY = "serve_app.deployments.autoscaling:OwedWork"


def config_of(scale: DeploymentScale, requests: int) -> AutoscalingConfig:
    """Return a config without delays: Serve's own clock does not run in these tests."""
    config = ingress_scaling(scale.min_replicas, scale.effective_max_replicas, requests)[
        "autoscaling_config"
    ]
    no_delays = {"upscale_delay_s": 0, "downscale_delay_s": 0}
    return cast(AutoscalingConfig, config.model_copy(update=no_delays))


class Application:
    """What the controller knows of an application, and the application's policy."""

    def __init__(
        self,
        *,
        ingress: DeploymentScale = SINGLE,
        policy: str = POLICY,
        targets: dict[str, float] = TARGETS,
        **stages: DeploymentScale,
    ) -> None:
        # the class is unpickled, as in the controller
        self._policy: Any = apply_autoscaling_config(
            resolve_policy(AutoscalingPolicy(policy_function=policy, policy_kwargs=targets))
        )
        self._configs = {"Ingress": config_of(ingress, 1000)} | {
            name: config_of(scale, 4) for name, scale in stages.items()
        }
        self.replicas = {name: config.min_replicas for name, config in self._configs.items()}
        self.running = dict(self.replicas)
        self.requests = dict.fromkeys(self._configs, 0.0)
        self._states: Any = {}

    def report(self, now: float, *reports: dict[str, float], **more: Any) -> dict[str, int]:
        """Return the number of stage replicas after a report of each ingress replica."""
        metrics: dict[str, dict[ReplicaID, Any]] = {}
        ingress = DeploymentID(name="Ingress", app_name="aura")
        for number, numbers in enumerate(reports):
            replica = ReplicaID(unique_id=str(number), deployment_id=ingress)
            for name, value in (numbers | more).items():
                series = [TimeStampedValue(now - 2, 1e6), TimeStampedValue(now - 1, value)]
                metrics.setdefault(name, {})[replica] = series
        contexts = {}
        for name, config in self._configs.items():
            context = self._context(name, config, now, metrics if name == "Ingress" else {})
            contexts[context.deployment_id] = context
        decided, self._states = self._policy(contexts)
        for id, wanted in decided.items():
            config = self._configs[id.name]
            self.replicas[id.name] = min(config.max_replicas, max(config.min_replicas, wanted))
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
    """Return the report of an ingress whose images need these GPU-seconds in each stage."""
    return to_wire(
        {
            Stage.BASE: Demand(images=float(base > 0), owed=base),
            Stage.REFINER: Demand(images=float(base + refiner > 0), owed=refiner),
        }
    )


def two_stages(**more: Any) -> Application:
    return Application(BaseGenerator=UP_TO_THREE, Refiner=UP_TO_THREE, **more)


def stages(base: int, refiner: int) -> dict[str, int]:
    return {"BaseGenerator": base, "Refiner": refiner}


def test_the_policy_knows_the_names_of_the_deployments() -> None:
    names = {autoscaling._INGRESS, *autoscaling._STAGES}
    assert names == set(SECTIONS) - {"Ledger"}


def test_replicas_follow_the_owed_work_of_each_stage_at_once() -> None:
    application = two_stages()
    assert application.report(0, owing(25, 5)) == stages(3, 1)
    assert application.report(1, owing(500, 15)) == stages(3, 2)


def test_the_owed_work_of_all_ingress_replicas_counts_together() -> None:
    assert two_stages().report(0, owing(9), owing(9)) == stages(2, 1)


def test_upstream_work_counts_at_once_where_one_replica_runs_both_stages() -> None:
    demand = to_wire({Stage.BASE: Demand(4, 5.0), Stage.REFINER: Demand(4, 30.0, upstream=30.0)})
    assert two_stages().report(0, demand) == stages(1, 1)
    combined = Application(BaseAndRefiner=DeploymentScale(min_replicas=1, max_replicas=9))
    assert combined.report(0, demand) == {"BaseAndRefiner": 4}


def test_totals_of_an_ingress_that_reports_late_are_not_arriving_work() -> None:
    application = Application(BaseGenerator=DeploymentScale(min_replicas=1, max_replicas=40))

    def numbers(now: int) -> dict[str, float]:
        return to_wire({Stage.BASE: Demand(1, 0.5, arrived_total=20_000 + 0.5 * now)})

    for now in range(60):
        reports = [numbers(now)] * (1 if now < 5 or 30 <= now < 35 else 2)
        assert application.report(now, *reports)["BaseGenerator"] <= 2


def test_replicas_are_removed_when_fewer_were_enough_for_the_delay() -> None:
    application = two_stages()
    application.report(0, owing(30))
    assert application.report(1, owing(0)) == stages(3, 1)
    assert application.report(60, owing(0)) == stages(3, 1)
    assert application.report(61, owing(0)) == stages(1, 1)


def test_arriving_work_keeps_replicas_though_little_is_owed() -> None:
    application = two_stages()
    replicas: dict[str, int] = {}
    for now in range(200):
        demand = {Stage.BASE: Demand(1, 0.5, arrived_total=2.0 * now), Stage.REFINER: Demand()}
        replicas = application.report(now, to_wire(demand))
    assert replicas == stages(3, 1)  # 2 GPU-seconds per second, at a utilization of 0.8


def test_before_any_report_every_stage_keeps_its_replicas() -> None:
    application = two_stages()
    application.replicas |= {"BaseGenerator": 2}
    for now in (0, 50, 100, 150):
        assert application.report(now) == stages(2, 1)
        serves_own = {RUNNING_REQUESTS_KEY: 7.0}
        assert application.report(now + 1, serves_own) == stages(2, 1)


def test_without_an_ingress_every_deployment_keeps_its_replicas() -> None:
    application = two_stages()
    del application._configs["Ingress"]
    application.replicas |= {"BaseGenerator": 2}
    assert application.report(0)["BaseGenerator"] == 2


def test_after_a_restart_the_policy_goes_on_from_the_existing_replicas() -> None:
    application = two_stages()
    application.replicas |= {"BaseGenerator": 3}
    assert application.report(0, owing(0)) == stages(3, 1)
    assert application.report(60, owing(0)) == stages(1, 1)


def test_a_limit_is_never_exceeded_and_replicas_move_to_the_stage_with_the_work() -> None:
    application, limit = two_stages(), {MAX_TOTAL_REPLICAS: 4.0}
    history = [application.report(0, owing(100, 5), **limit)]
    history += [application.report(now, owing(5, 100), **limit) for now in range(1, 100)]
    assert history[0] == stages(3, 1)
    assert history[-1] == stages(1, 3)
    assert all(sum(replicas.values()) <= 4 for replicas in history)


def test_while_serve_redeploys_the_smaller_limit_holds() -> None:
    old = owing(100, 100) | {MAX_TOTAL_REPLICAS: 6.0}
    new = owing(0, 0) | {MAX_TOTAL_REPLICAS: 4.0}
    assert sum(two_stages().report(0, old, new).values()) == 4


def test_both_stages_on_one_deployment_are_scaled_by_the_work_of_both() -> None:
    application = Application(BaseAndRefiner=DeploymentScale(max_replicas=8))
    assert application.report(0, owing(15, 14)) == {"BaseAndRefiner": 3}
    limited = application.report(0, owing(100, 100), **{MAX_TOTAL_REPLICAS: 4.0})
    assert limited == {"BaseAndRefiner": 4}


def test_a_stage_that_does_not_scale_is_left_alone() -> None:
    assert Application(Refiner=UP_TO_THREE).report(0, owing(100, 15)) == {"Refiner": 2}
    assert Application().report(0, owing(100, 15)) == {}


TO_ZERO = DeploymentScale(min_replicas=0, max_replicas=2)


def test_a_refiner_at_zero_starts_for_the_first_image_though_its_cost_is_unknown() -> None:
    application = Application(BaseGenerator=UP_TO_THREE, Refiner=TO_ZERO)
    assert application.report(0, owing(0)) == stages(1, 0)
    unmeasured = to_wire({Stage.BASE: Demand(1), Stage.REFINER: Demand(1)})
    assert application.report(1, unmeasured) == stages(1, 1)
    assert application.report(2, owing(0)) == stages(1, 1)
    assert application.report(62, owing(0)) == stages(1, 0)


def test_a_refiner_that_only_a_leaving_ingress_needs_starts_and_stays() -> None:
    application = Application(BaseGenerator=UP_TO_THREE, Refiner=TO_ZERO)
    application.requests["Refiner"] = 0.2  # a mean that Serve counts at the handles
    for now in range(100):
        assert application.report(now, owing(0)) == stages(1, 1)


def test_a_refiner_at_zero_gets_a_gpu_from_a_base_that_has_them_all() -> None:
    limit = {MAX_TOTAL_REPLICAS: 4.0}
    application = Application(BaseGenerator=DeploymentScale(max_replicas=4), Refiner=TO_ZERO)
    assert application.report(0, owing(100), **limit) == stages(3, 1)
    application = Application(BaseGenerator=DeploymentScale(max_replicas=4), Refiner=TO_ZERO)
    only_base = to_wire({Stage.BASE: Demand(9, 100.0)})
    assert application.report(0, only_base, **limit) == stages(4, 0)
    assert application.report(1, owing(100, 2), **limit) == stages(3, 1)


@pytest.mark.parametrize(("requests", "replicas"), [(0, 1), (1000, 1), (1001, 2), (9000, 3)])
def test_the_ingress_is_scaled_by_its_requests(requests: int, replicas: int) -> None:
    application = two_stages(ingress=DeploymentScale(max_replicas=3))
    application.requests["Ingress"] = requests
    application.report(0, owing(0))
    assert application.replicas["Ingress"] == replicas


def test_the_ingress_reports_every_second_and_stages_have_no_delays() -> None:
    stage = stage_scaling(1, 3, 4)["autoscaling_config"]
    ingress = ingress_scaling(1, 1, 1000)["autoscaling_config"]
    for config in (stage, ingress):
        assert config.metrics_interval_s == 1 < config.look_back_period_s
    assert (stage.upscale_delay_s, stage.downscale_delay_s) == (0, 0)
    assert (stage.min_replicas, stage.max_replicas) == (1, 3)
    assert (ingress.min_replicas, ingress.max_replicas) == (1, 1)
    assert stage_scaling(2, 2, 4) == {"num_replicas": 2}


def test_the_old_policy_and_its_old_arguments_work_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old_targets = {"wait": 10, "busy": 0.8, "patience": 60}
    with caplog.at_level(logging.WARNING, logger="aura.autoscaling"):
        application = two_stages(policy=OLD_POLICY, targets=old_targets)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "the autoscaling policy serve_app.deployments.autoscaling:OwedWork is deprecated; "
        "use serve_app.deployments.autoscaling:OwedWorkAutoscaler",
        "policy_kwargs.wait is deprecated; use target_drain_s",
        "policy_kwargs.busy is deprecated; use target_utilization",
        "policy_kwargs.patience is deprecated; use downscale_delay_s",
    ]
    assert application.report(0, owing(25, 5)) == stages(3, 1)
    assert application.report(59, owing(0)) == stages(3, 1)


def test_a_target_under_both_of_its_names_is_an_error() -> None:
    with pytest.raises(ValueError, match="target_drain_s is given twice"):
        autoscaling.OwedWorkAutoscaler(wait=5, target_drain_s=10)


def test_the_current_policy_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="aura.autoscaling"):
        two_stages()
    assert caplog.records == []


def test_the_controller_needs_neither_torch_nor_the_app_to_load_the_policy() -> None:
    code = (
        "import sys, serve_app.deployments.autoscaling; "
        "print({'torch', 'serve_app.app', 'serve_app.config'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_app_is_imported_without_torch() -> None:
    code = "import sys, serve_app.app; print({'torch', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
