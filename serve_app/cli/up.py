"""`up`: Ray and Serve started, watched and drained, which a plain `serve run` does not do.

Knows no HTTP. Two processes: the one you see waits for signals; the one that holds Ray has a
session of its own, or Ctrl-C would kill Ray before the drain.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ServeDeploySchema
from rich.console import Console
from rich.table import Table

from serve_app import __version__
from serve_app.config.catalog import find_checkpoints
from serve_app.config.serve_config import LOOPBACK, check_port, host_of, port_of, read_config
from serve_app.config.serve_schema import ServedApplication
from serve_app.config.settings import Settings
from serve_app.core.errors import OperatorError, SettingsError
from serve_app.deployments.ray_private import serve_client

_DRAIN = 600.0  # seconds that images under way may take, unless the args allow more
_PAUSE = 0.1  # seconds between two looks at what is started
_STARTED = (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOY_FAILED)

console = Console(stderr=True, highlight=False)


def up(config: Path) -> int:
    """The service has run and ended; the exit status. What is wrong is said before Ray starts."""
    try:
        read = read_config(config)
        read.check_applied()
        settings = Settings.read(read.args.settings)
        find_checkpoints(settings)
        settings.blocked_words()
        port = port_of(settings, read.http)
        check_port(host_of(settings, read.http), port)
        _check_metrics_port(settings.metrics_port, port)
    except OperatorError as error:
        console.print(f"[bold red]error[/] {error}", soft_wrap=True)
        return 2
    environment = {**_metrics_environment(settings.metrics_port), **os.environ}
    if settings.model_device.startswith("cuda:"):
        environment["CUDA_VISIBLE_DEVICES"] = settings.model_device.removeprefix("cuda:")
        environment["MODEL_DEVICE"] = "cuda"
    holder = subprocess.Popen(
        [sys.executable, "-m", "serve_app", "_run", "--config", str(config)],
        stdin=subprocess.PIPE,  # closes when this process dies, however it dies
        start_new_session=True,
        env=environment,
    )

    def forward(signum: int, frame: FrameType | None) -> None:
        holder.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGINT, forward)
    signal.signal(signal.SIGTERM, forward)
    return holder.wait()


def run_ray(config: Path) -> int:
    """Ray and the application have run in this process until it was told to end; the exit status.

    The first SIGTERM drains: nothing new is taken, what was accepted is finished. A second one, or
    one that comes while the models load, ends it at once.
    """
    ready, told, forced = threading.Event(), threading.Event(), threading.Event()

    def tell(signum: int, frame: FrameType | None) -> None:
        if not ready.is_set():
            raise KeyboardInterrupt
        (forced if told.is_set() else told).set()

    threading.Thread(target=_tell_when_orphaned, daemon=True).start()
    read = read_config(config)
    http, application, args = read.http, read.application, read.args
    settings = Settings.read(args.settings)
    options = dict(http, port=port_of(settings, http), host=host_of(settings, http))
    ray.init(
        log_to_driver=False,
        logging_level=logging.WARNING,
        _metrics_export_port=settings.metrics_port,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, tell)  # after Ray, which installs a handler of its own
    name = application.name
    try:
        serve.start(proxy_location=read.file.proxy_location, http_options=options)
        with console.status("loading the models"):
            _deploy(application)
        ready.set()
        _greet(settings, options, asked_host=http.get("host"))
        told.wait()
    except Exception as error:  # whatever start-up dies of, the operator gets one line
        console.print(f"[bold red]error[/] {_one_line(error)}", soft_wrap=True)
        _stop()
        return 1
    except KeyboardInterrupt:  # told while the models load
        ready.set()
    application_now = serve.status().applications.get(name)
    if application_now is not None and application_now.status == ApplicationStatus.RUNNING:
        console.print("draining: images under way are finished, nothing new is taken")
        _drain(name, forced, max(_DRAIN, args.drain_seconds))
    _stop()
    console.print("stopped")
    return 0


def _deploy(application: ServedApplication) -> None:
    """The application runs, as under `serve run`: an autoscaling policy of all its deployments is
    not for `serve.run`. Raises `RuntimeError` with all that Serve says, where it can't."""
    content = application.model_dump(exclude_unset=True)
    client = serve_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [content]}))
    while (status := serve.status().applications[application.name]).status not in _STARTED:
        time.sleep(_PAUSE)
    if status.status != ApplicationStatus.RUNNING:
        replicas = [one.message for one in status.deployments.values()]
        raise RuntimeError("\n".join((*replicas, status.message)))
    client.wait_for_proxies_serving()


def _check_metrics_port(metrics: int | None, service: int) -> None:
    """Returns when METRICS_PORT is free, and not the service's own. Raises `SettingsError`."""
    if metrics is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, metrics))
            problem = "it is the service's own" if metrics == service else None
        except OSError as error:
            problem = error.strerror
    if problem:
        raise SettingsError(
            f"METRICS_PORT={metrics} can't be used ({problem}). Choose another: "
            f"METRICS_PORT={max(metrics, service) + 1} aura up",
            "METRICS_PORT",
        )


def _metrics_environment(port: int | None) -> dict[str, str]:
    """What keeps Ray's metrics to this machine, where `up` starts a Ray of its own.

    Ray's agent listens on every interface, unless its node goes by a loopback address: that is what
    a Ray does that is told not to be a cluster, by a name from the systems where none can be.
    Without a port it would choose one.
    """
    if port is None:
        return {"RAY_enable_metrics_collection": "0"}
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def _tell_when_orphaned() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the process that started this one is gone
    os.kill(os.getpid(), signal.SIGTERM)


def _drain(name: str, forced: threading.Event, seconds: float) -> None:
    """Every ingress replica has finished what it accepted, or was given up."""
    calls = serve.get_app_handle(name).broadcast("drain")
    done = threading.Event()

    def wait() -> None:
        try:
            calls.results(timeout_s=seconds)
        except Exception as error:  # an ingress that is gone has nothing left to finish
            console.print(f"draining was cut short: {_one_line(error)}")
        finally:
            done.set()

    threading.Thread(target=wait, daemon=True).start()
    while not done.wait(0.1) and not forced.is_set():
        pass


def _stop() -> None:
    serve.shutdown()
    ray.shutdown()


def _one_line(error: Exception) -> str:
    """The sentence of a named error, wherever in a foreign message it is quoted."""
    marker = "serve_app.core.errors."
    for line in reversed(str(error).splitlines()):
        if marker in line:
            return line.split(marker, 1)[1].split(": ", 1)[-1].strip()
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _greet(settings: Settings, options: dict[str, Any], asked_host: str | None) -> None:
    address = settings.image_service_base_url or f"http://localhost:{options['port']}"
    checkpoint = settings.model_checkpoint_dir
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]Aura Serve[/]", __version__)
    table.add_row("address", f"[bold]{address}[/]")
    table.add_row("listening", f"{options['host']}:{options['port']}")
    table.add_row("keys", _who_may_ask(settings))
    if asked_host not in (None, options["host"]):
        table.add_row("", f"[yellow]the config's host {asked_host} needs API_KEYS[/]")
    table.add_row("model", checkpoint.name if checkpoint else "demo: plain shapes")
    if settings.models_file:
        table.add_row("", f"and those of {settings.models_file}")
    if checkpoint is None:
        table.add_row("", "[yellow]for real pictures: aura download[/]")
    table.add_row("terms", f"{address}/licenses")
    table.add_row("try", f"curl {address}/health")
    if settings.metrics_port:
        table.add_row("metrics", f"curl http://localhost:{settings.metrics_port}/metrics")
    table.add_row("stop", "Ctrl-C, which first finishes what was accepted")
    console.print(table)


def _who_may_ask(settings: Settings) -> str:
    if settings.api_keys:
        return f"{len(settings.api_keys)}, needed for all but /health, /livez and /licenses"
    if settings.allow_anonymous:
        return "[yellow]none: everybody may ask (ALLOW_ANONYMOUS=1)[/]"
    return "none: this machine alone may ask"
