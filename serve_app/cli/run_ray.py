"""`aura _run`, which `aura up` starts: run Ray and Serve, and drain them at the end.

A plain `serve run` neither exits when a deployment fails nor drains. What happens is reported to
`up`, which alone writes to the terminal; what this process prints goes to a log file.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    ServeDeploySchema,
)

from serve_app.cli.console import FAILED, OK, REFUSED
from serve_app.cli.drain import drain, patience
from serve_app.cli.runner_report import Kind, ReportWriter
from serve_app.config.catalog import find_checkpoints
from serve_app.config.folders import started_cluster
from serve_app.config.listening import host_of, port_of
from serve_app.config.secret_file import delete_secret_file
from serve_app.config.serve_config import ServeConfig, read_config
from serve_app.config.settings import Settings
from serve_app.config.topology import StagePlan, plan_stages
from serve_app.core.capacity.placement import Resources, amounts, find_shortage
from serve_app.core.errors import AuraError, OperatorError
from serve_app.core.service.info import Health, HealthStatus
from serve_app.core.startup_error import (
    read_startup_error,
    startup_failure,
)
from serve_app.deployments.cluster import ray_cluster
from serve_app.deployments.ray_private import serve_client, shut_down_without_waiting
from serve_app.deployments.replica_log import LogLines

_POLL_SECONDS = 0.1  # between two checks of the deployment status
_BEAT_SECONDS = 2.0  # between two calls of Ray that show that it answers
_LOG_SECONDS = 1.0  # between two calls for what the replicas have logged
_WAITING_SECONDS = 15.0  # between two lines that say for what the models wait
_INGRESS_SECONDS = 30.0  # in which every ingress replica should have heard of the stages
_CALL_SECONDS = 5.0  # that one of those calls may take
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")  # of a deployment
_SETTLED = (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOY_FAILED)


def run_ray(config: Path, report_fd: int) -> int:
    """Run Ray and the application in this process until SIGTERM; return the exit code.

    The first SIGTERM drains: nothing new is accepted, accepted images are finished. At a second
    one, or when patience ends, what is not finished goes to the spool or is lost. One that comes
    while the models load ends the service at once.
    """
    reports = ReportWriter(report_fd)
    ready, stopping, forced = threading.Event(), threading.Event(), threading.Event()

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        if not ready.is_set():
            raise KeyboardInterrupt
        (forced if stopping.is_set() else stopping).set()

    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    logging.getLogger("serve_app.config").setLevel(logging.ERROR)  # `up` has shown its warnings
    read = read_config(config)
    settings = Settings.read(read.args.settings)
    name = read.application.get("name", "default")
    background = _Background()
    graceful = False
    try:
        context: Any = ray.init(log_to_driver=False, _metrics_export_port=settings.metrics_port)
        signal.signal(signal.SIGTERM, on_sigterm)  # after Ray, which installs a handler of its own
        reports.send(Kind.CONNECTED, str(Path(str(context.address_info["session_dir"])) / "logs"))
        background.start(lambda: _beat(reports), every=_BEAT_SECONDS)
        cluster = ray_cluster(started_cluster())
        plan = plan_stages(read.args, settings, find_checkpoints(settings), cluster)
        reports.send(Kind.LOADING)
        _start_serve(read, settings)
        _deploy(read.application, name, plan, reports)
        ready.set()
        reports.send(Kind.READY)
        cursors: dict[str, int] = {}
        background.start(lambda: _pass_on_log(name, cursors, reports), every=_LOG_SECONDS)
        stopping.wait()
        graceful = True
        reports.send(Kind.DRAINING)
        seconds, spool = patience(read.args, settings.drain_spool), settings.drain_spool
        text, code = drain(name, forced, seconds, spool)
        reports.send(Kind.DRAINED, text, code=code)
        return code
    except AuraError as error:
        code = REFUSED if isinstance(error, OperatorError) else FAILED
        reports.send(
            Kind.FAILED, error.problem, subject=error.subject, remedy=error.remedy, code=code
        )
        return code
    except KeyboardInterrupt:  # SIGTERM while the models load
        return OK
    except Exception as error:  # whatever else start-up dies of, the operator gets one line
        logging.getLogger("aura.up").exception("the start failed")
        cause = error.cause if isinstance(error, RayTaskError) else error
        reports.send(Kind.FAILED, f"{type(cause).__name__}: {_first_line(cause)}", code=FAILED)
        return FAILED
    finally:
        ready.set()  # another SIGTERM must not interrupt the stop
        background.stop()
        reports.send(Kind.STOPPING)
        _stop(graceful=graceful)


def _start_serve(read: ServeConfig, settings: Settings) -> None:
    options = dict(read.http, port=port_of(settings, read.http), host=host_of(settings, read.http))
    proxies = read.content.get("proxy_location", "EveryNode")
    serve.start(proxy_location=proxies, http_options=options)


def _deploy(
    application: Mapping[str, Any], name: str, plan: StagePlan, reports: ReportWriter
) -> None:
    """Deploy an application and wait until it runs; report for what it waits.

    `serve.run` takes no autoscaling policy of an application, so this does what `serve deploy`
    does. Raises `OperatorError` or `StartupFailure` if the application fails.
    """
    client = serve_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [dict(application)]}))
    started = time.monotonic()
    shortage = _shortage(plan)
    if shortage:
        reports.send(Kind.WAITING, shortage)
    reported = started
    while (status := serve.status().applications[name]).status not in _SETTLED:
        if error := _fault(status):
            raise error
        if time.monotonic() - reported >= _WAITING_SECONDS:
            reported = time.monotonic()
            if shortage := _shortage(plan):
                reports.send(Kind.WAITING, shortage)
            else:
                reports.send(Kind.NOTE, _progress(plan, status, time.monotonic() - started))
        time.sleep(_POLL_SECONDS)
    if status.status != ApplicationStatus.RUNNING:
        raise startup_failure(_messages(status, name))
    client.wait_for_proxies_serving()
    if not _has_heard_everywhere(name):
        reports.send(Kind.NOTE, "an ingress has not heard of every stage yet: it answers 503")


def _has_heard_everywhere(name: str) -> bool:
    """Wait for a while until every ingress replica has heard of the stages; return whether.

    Any of them may answer /health next.
    """
    end = time.monotonic() + _INGRESS_SECONDS
    while time.monotonic() < end:
        with suppress(TimeoutError, RayError, DeploymentUnavailableError):
            calls = serve.get_app_handle(name).broadcast("health")
            answers = calls.results(timeout_s=_CALL_SECONDS, return_exceptions=True)
            if all(isinstance(found, Health) and _has_heard(found) for found in answers):
                return True
        time.sleep(_POLL_SECONDS)
    return False


def _has_heard(health: Health) -> bool:
    return health.status is not HealthStatus.LOADING


def _fault(status: ApplicationStatusOverview) -> OperatorError | None:
    """Return what is wrong with a setting or a file: Serve would try three times."""
    for deployment in status.deployments.values():
        error = read_startup_error(deployment.message)
        if isinstance(error, OperatorError):
            return error
    return None


def _messages(status: ApplicationStatusOverview, name: str) -> list[tuple[str, str]]:
    """Return what Serve says of each part of an application, the deployments that failed first."""
    parts = sorted(status.deployments.items(), key=lambda part: part[1].status not in _FAILED)
    return [(part, overview.message) for part, overview in parts] + [(name, status.message)]


def _shortage(plan: StagePlan) -> str:
    """Return for which nodes the replicas wait, "" if there are enough."""
    shortage = find_shortage(plan.demands, ray_cluster(started_cluster()).nodes)
    return f"{shortage.demand.deployment}: {shortage}" if shortage else ""


def _progress(plan: StagePlan, status: ApplicationStatusOverview, seconds: float) -> str:
    """Return what is still loading, and what a replica lacks if another application has it."""
    free = ray.available_resources()
    demands = {demand.deployment: demand.requested for demand in plan.demands}
    pending = [
        part + _lack(demands.get(part, {}), free)
        for part, overview in status.deployments.items()
        if overview.status != "HEALTHY"
    ]
    return f"still loading after {seconds:.0f} s: {', '.join(pending) or 'the application'}"


def _lack(needs: Resources, free: Resources) -> str:
    if all(free.get(kind, 0) >= amount for kind, amount in needs.items()):
        return ""
    available = amounts({kind: free.get(kind, 0) for kind in needs})
    return f" (a replica needs {amounts(needs)}; free: {available})"


class _Background:
    """Calls that are made again and again beside the main thread, until they are stopped."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, call: Any, *, every: float) -> None:
        """Make a call every so many seconds, and once more at the end."""
        thread = threading.Thread(target=self._repeat, args=(call, every), daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Return when no call is made any more, or when those that remain must have failed."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * _CALL_SECONDS)

    def _repeat(self, call: Any, every: float) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(every)
            with suppress(Exception):  # a call that fails is made again
                call()


def _beat(reports: ReportWriter) -> None:
    """Report that Ray answers. Report its loss if it has given up this process's own node."""
    own = ray.get_runtime_context().get_node_id()
    if any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes()):
        reports.send(Kind.LOST, "its node has been declared dead")
    reports.send(Kind.BEAT)


def _pass_on_log(name: str, cursors: dict[str, int], reports: ReportWriter) -> None:
    """Report what the ingress replicas have logged, on whatever nodes they run."""
    call = serve.get_app_handle(name).broadcast("log_lines", dict(cursors))
    for result in call.results(timeout_s=_CALL_SECONDS, return_exceptions=True):
        if isinstance(result, LogLines):
            cursors[result.replica] = result.cursor
            if result.lines:
                reports.send(Kind.LINES, "\n".join(result.lines))


def _stop_when_orphaned() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the process that started this one is dead
    delete_secret_file(os.environ)  # who is left has read it, and SIGTERM may end this at once
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(*, graceful: bool) -> None:
    """Stop Serve and Ray. Without a drain, replicas that load or wait are not waited for."""
    if graceful:
        serve.shutdown()
    elif ray.is_initialized():
        shut_down_without_waiting()
    ray.shutdown()


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
