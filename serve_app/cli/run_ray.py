"""`aura _run`, which `aura up` starts: run Ray and Serve, watch them, and drain them at the end.

A plain `serve run` neither exits when a deployment fails nor drains.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ServeDeploySchema
from rich.markup import escape
from rich.table import Table

from serve_app import __version__
from serve_app.cli.console import FAILED, OK, console, print_error
from serve_app.config.catalog import find_checkpoints
from serve_app.config.listening import addresses_of, host_of, port_of
from serve_app.config.network import netloc
from serve_app.config.serve_config import read_config
from serve_app.config.settings import Settings
from serve_app.config.topology import plan_stages
from serve_app.core.errors import OperatorError
from serve_app.core.startup_error import read_startup_error
from serve_app.deployments.ray_private import serve_client

_MIN_DRAIN_SECONDS = 600.0  # for in-flight images; the args may allow more
_POLL_SECONDS = 0.1  # between two checks of the deployment status
_SETTLED = (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOY_FAILED)


def run_ray(config: Path) -> int:
    """Run Ray and the application in this process until SIGTERM; return the exit code.

    The first SIGTERM drains: nothing new is accepted, accepted images are finished. A second one,
    or one that comes while the models load, ends the service at once.
    """
    ready, stopping, forced = threading.Event(), threading.Event(), threading.Event()

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        if not ready.is_set():
            raise KeyboardInterrupt
        (forced if stopping.is_set() else stopping).set()

    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    logging.getLogger("serve_app.config").setLevel(logging.ERROR)  # `up` has shown its warnings
    read = read_config(config)
    http, args = read.http, read.args
    settings = Settings.read(args.settings)
    options = dict(http, port=port_of(settings, http), host=host_of(settings, http))
    ray.init(
        log_to_driver=False,
        logging_level=logging.WARNING,
        _metrics_export_port=settings.metrics_port,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, on_sigterm)  # after Ray, which installs a handler of its own
    name = read.application.get("name", "default")
    try:
        # `build` plans too, but Serve reports a missing GPU only after it has started and retried
        gpus = ray.cluster_resources().get("GPU", 0)
        plan_stages(args, settings, find_checkpoints(settings), gpus)
        proxies = read.content.get("proxy_location", "EveryNode")
        serve.start(proxy_location=proxies, http_options=options)
        with console.status("loading the models"):
            _deploy(read.application, name)
        ready.set()
        _print_summary(settings, http)
        stopping.wait()
    except Exception as error:  # whatever start-up dies of, the operator gets one line
        known = error if isinstance(error, OperatorError) else read_startup_error(str(error))
        print_error(known or RuntimeError(_last_line(error)))
        _stop()
        return FAILED
    except KeyboardInterrupt:  # SIGTERM while the models load
        ready.set()
    status = serve.status().applications.get(name)
    if status is not None and status.status == ApplicationStatus.RUNNING:
        console.print("draining: accepted images are finished, nothing new is accepted")
        _drain(name, forced, max(_MIN_DRAIN_SECONDS, args.drain_seconds))
    _stop()
    console.print("stopped")
    return OK


def _deploy(application: Mapping[str, Any], name: str) -> None:
    """Deploy an application and wait until it runs.

    `serve.run` takes no autoscaling policy of an application, so this does what `serve deploy`
    does. Raises `RuntimeError` with everything that Serve reports if the application fails.
    """
    client = serve_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [dict(application)]}))
    while (status := serve.status().applications[name]).status not in _SETTLED:
        time.sleep(_POLL_SECONDS)
    if status.status != ApplicationStatus.RUNNING:
        deployments = [deployment.message for deployment in status.deployments.values()]
        raise RuntimeError("\n".join((*deployments, status.message)))
    client.wait_for_proxies_serving()


def _stop_when_orphaned() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the process that started this one is dead
    os.kill(os.getpid(), signal.SIGTERM)


def _drain(name: str, forced: threading.Event, seconds: float) -> None:
    """Wait until every ingress replica has finished what it accepted, or until `forced` is set."""
    calls = serve.get_app_handle(name).broadcast("drain")
    done = threading.Event()

    def wait() -> None:
        try:
            calls.results(timeout_s=seconds)
        except Exception as error:  # an ingress replica that died has nothing left to finish
            console.print(f"draining was cut short: {_last_line(error)}")
        finally:
            done.set()

    threading.Thread(target=wait, daemon=True).start()
    while not done.wait(_POLL_SECONDS) and not forced.is_set():
        pass


def _stop() -> None:
    serve.shutdown()
    ray.shutdown()


def _last_line(error: Exception) -> str:
    """Return the last line of an error's text: in a traceback, what was raised."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _print_summary(settings: Settings, http: Mapping[str, Any]) -> None:
    address, *others = map(escape, addresses_of(settings, http))
    checkpoint = settings.model_checkpoint_dir
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]Aura Serve[/]", __version__)
    table.add_row("address", f"[bold]{address}[/]")
    for other in others:
        table.add_row("", other)
    table.add_row("listening", escape(netloc(host_of(settings, http), port_of(settings, http))))
    table.add_row("keys", _access(settings))
    table.add_row("model", checkpoint.name if checkpoint else "demo: plain shapes")
    if settings.models_file:
        table.add_row("", f"and those of {settings.models_file}")
    if checkpoint is None:
        table.add_row("", "[yellow]for real images: aura download[/]")
    table.add_row("terms", f"{address}/licenses")
    table.add_row("try", f"curl {address}/health")
    if settings.metrics_port:
        table.add_row("metrics", f"curl http://localhost:{settings.metrics_port}/metrics")
    table.add_row("stop", "Ctrl-C, which finishes accepted images first")
    console.print(table)


def _access(settings: Settings) -> str:
    if settings.api_keys:
        return f"{len(settings.api_keys)}, needed for all but /health, /livez and /licenses"
    if settings.allow_anonymous:
        return "[yellow]none: everyone may call (ALLOW_ANONYMOUS=1)[/]"
    return "none: only this machine may call"
