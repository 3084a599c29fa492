"""Run all checks: in which order, and which depend on which.

A check that raises is a finding too. No terminal.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from serve_app.cloud import key_check
from serve_app.cloud.gemini_options import GeminiOptions
from serve_app.cloud.key_check import KeyResponse
from serve_app.config.app_args import AppArgs
from serve_app.config.catalog import max_batch_images, precision_of
from serve_app.config.folders import ray_folder
from serve_app.config.listening import host_of, port_of
from serve_app.config.settings import Settings
from serve_app.config.topology import Topology, ingress_scale, replica_demands
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import SettingsError
from serve_app.core.service.ledger_place import LedgerFile
from serve_app.doctor.checks import (
    access,
    address,
    capacity,
    disk,
    gpu_probe,
    gpus,
    ledger,
    machine,
    models,
    ports,
    ray_cluster,
)
from serve_app.doctor.checks.address import UrlResponse
from serve_app.doctor.checks.cloud import check_cloud
from serve_app.doctor.checks.extensions import check_extensions
from serve_app.doctor.checks.gpu_memory import ModelSize
from serve_app.doctor.checks.gpu_probe import Gpu, GpuReport
from serve_app.doctor.checks.machine import Machine
from serve_app.doctor.checks.models import FoundModels
from serve_app.doctor.checks.ray_cluster import Cluster
from serve_app.doctor.finding import Finding, Verdict, fail, problem_of, skip
from serve_app.doctor.inputs import read_serve_config, read_settings
from serve_app.runtime.checkpoints.checkpoint import num_parameters

_NEED_SETTINGS = {  # checks of each section that can't run without settings
    "models": ("base", "models file", "device", "precision", "memory"),
    "access": ("port", "metrics port", "host", "address", "keys", "origins"),
    "disk": ("ledger", "disk"),
}
_MAX_CHARS = 300  # of an unexpected error


@dataclass(frozen=True, slots=True)
class Probes:
    """What is examined: the serve config, and functions that probe the rest of the machine."""

    config: Path = Path("serve_config.yaml")
    machine: Callable[[], Machine] = machine.probe
    gpus: Callable[[], GpuReport] = gpu_probe.probe
    cluster: Callable[[], Cluster] = ray_cluster.probe
    url: Callable[[str], UrlResponse] = address.probe
    cloud: Callable[[GeminiOptions], KeyResponse] = key_check.probe
    on_bytes: Callable[[int, int], object] | None = None  # read, and in all; None: read no weights


class ProbeResults:
    """What the probes return, each called once, when it is first needed: a probe may raise."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    @cached_property
    def machine(self) -> Machine:
        """The machine and its Python."""
        return self._probes.machine()

    @cached_property
    def gpus(self) -> GpuReport:
        """The build of torch, the driver and the GPUs."""
        return self._probes.gpus()

    @cached_property
    def cluster(self) -> Cluster:
        """Ray, seen from outside."""
        return self._probes.cluster()


@dataclass(frozen=True, slots=True)
class Section:
    """Findings that belong together."""

    title: str
    findings: tuple[Finding, ...]


def run(probes: Probes) -> tuple[Section, ...]:
    """Run all checks, in the order in which a person would fix what they find."""
    results = ProbeResults(probes)
    http, args, config_finding = read_serve_config(probes.config)
    settings, settings_finding = read_settings(args)
    sections = {
        "machine": _check_machine(results),
        "settings": iter((config_finding, settings_finding)),
        "models": _with_settings(
            settings, "models", lambda read: _check_models(read, args, results, probes)
        ),
        "access": _with_settings(
            settings, "access", lambda read: _check_access(read, http, probes)
        ),
        "ray": _check_ray(results),
        "disk": _with_settings(settings, "disk", lambda read: _check_disk(read, http)),
    }
    return tuple(
        Section(
            title,
            tuple(finding.for_environment(os.environ) for finding in _guarded(title, findings)),
        )
        for title, findings in sections.items()
    )


def _with_settings(
    settings: Settings | None, title: str, check: Callable[[Settings], Iterator[Finding]]
) -> Iterator[Finding]:
    """Return the findings of a section, or skip its checks without settings."""
    if settings is None:
        reason = "not checked, because the settings can't be read"
        return iter([skip(name, reason) for name in _NEED_SETTINGS[title]])
    return check(settings)


def _guarded(title: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings, and one more if a check raises."""
    try:
        yield from findings
    except Exception as error:  # a broken installation can make any probe fail in any way
        problem = " ".join(str(error).split())[:_MAX_CHARS]
        message = f"the checks failed themselves: {type(error).__name__}: {problem}"
        yield fail(title, message, machine.INSTALL_COMMAND)


def _check_machine(results: ProbeResults) -> Iterator[Finding]:
    yield machine.check_python(results.machine)
    yield machine.check_platform(results.machine)
    yield machine.check_packages(results.machine)
    yield gpus.check_torch(results.gpus, results.machine)
    yield machine.check_clock(results.machine)


def _check_models(
    settings: Settings, args: AppArgs, results: ProbeResults, probes: Probes
) -> Iterator[Finding]:
    yield from check_cloud(settings, probes.cloud)
    found, findings = models.find_models(settings)
    yield from findings
    found, list_finding = models.find_listed_models(settings, found)
    yield list_finding
    download_finding = models.check_downloads(settings, found)
    yield download_finding
    yield models.check_token(findings, download_finding)
    if found.extensions:
        yield check_extensions(settings, found.extensions)
    if found.checkpoints:
        yield models.check_licenses(settings, found)
    filters_finding = models.check_filters(settings)
    yield filters_finding
    if probes.on_bytes:
        checker = settings.safety_checker_dir
        # Imported only here, because it imports torch, which the other checks do without.
        from serve_app.doctor.checks import weights

        usable = filters_finding.verdict is Verdict.OK
        yield from weights.check_values(
            weights.weight_sources(found, settings.models_file, checker if usable else None),
            probes.on_bytes,
        )
    device_finding = gpus.check_device(settings, results.gpus, is_demo=found.is_demo)
    yield device_finding
    yield gpus.check_precision(settings, results.gpus, cpu_has_bf16=results.machine.has_bf16)
    yield gpus.check_xformers(settings, gpus.probe_xformers(settings, results.gpus))
    yield gpus.check_compile(settings, results.gpus)
    yield gpus.check_quantization(settings, results.gpus)
    if found.base is None or device_finding.verdict in (Verdict.FAIL, Verdict.SKIP):
        yield skip("memory", "not checked, because the base model or the device can't be used")
        return
    yield from _check_capacity(settings, args, results, found, probes.config)


def _check_capacity(
    settings: Settings, args: AppArgs, results: ProbeResults, found: FoundModels, config: Path
) -> Iterator[Finding]:
    device = gpus.device_of(settings, results.gpus)
    selected = gpus.selected_gpus(settings, results.gpus)
    sizes = [
        ModelSize(checkpoint.stage, num_parameters(checkpoint), checkpoint.native_size)
        for checkpoint in found.checkpoints
    ]
    bases = [size for size in sizes if size.stage is Stage.BASE]
    refiner = next((size for size in sizes if size.stage is Stage.REFINER), None)
    try:
        topology = Topology.resolve(
            args,
            device,
            len(selected),
            refiner=refiner is not None,
            total_gpus=settings.total_gpus,
        )
    except SettingsError as error:
        yield fail("gpus", problem_of(error), f"{error.variable}=")
        return
    load = capacity.PlannedLoad(
        capacity.planned_replicas(topology, bases, refiner, settings.max_loaded_models),
        images=max_batch_images(settings, device),
        precision=precision_of(settings, device, cpu_has_bf16=results.machine.has_bf16),
        vae_half=device == "cuda" and all(gpu.has_bf16 for gpu in selected),
        cpu_has_bf16=results.machine.has_bf16,
    )
    if results.cluster.from_environment and results.cluster.responds:
        address = results.cluster.address
        yield skip("memory", f"not checked: the service runs on the GPUs of the Ray at {address}")
        return
    cpus = os.cpu_count() or 1
    demands = replica_demands(topology, ingress_scale(args, cpus))
    placement = capacity.check_placement(demands, cpus, _ray_gpus(device, selected), config)
    if device == "cuda" or placement.fix:
        yield placement
    if device != "cuda":
        yield capacity.check_ram(load, results.machine.available_memory)
        return
    yield capacity.check_gpu_memory(load, selected)
    yield from capacity.check_host_copies(load, selected, results.machine.available_memory)


def _ray_gpus(device: str, selected: Sequence[Gpu]) -> int:
    """Return the GPUs that Ray sees on this machine; Apple's is one."""
    return len(selected) or int(device == "mps")


def _check_access(
    settings: Settings, http: dict[str, Any] | None, probes: Probes
) -> Iterator[Finding]:
    options = http or {}
    port, host = port_of(settings, options), host_of(settings, options)
    yield ports.check_service_port(host, port)
    yield ports.check_metrics(settings.metrics_port, port)
    yield address.check_host(settings, options)
    url = settings.image_service_base_url
    yield address.check_address(
        settings,
        options,
        probes.url(url) if url else None,
        is_running=ports.is_aura(host, port),
    )
    yield access.check_keys(settings, options)
    yield access.check_origins(settings, port)


def _check_ray(results: ProbeResults) -> Iterator[Finding]:
    yield ray_cluster.check_cluster(results.cluster)
    yield ray_cluster.check_exposure(results.cluster)
    yield disk.check_ray_folders(os.environ)


def _check_disk(settings: Settings, http: dict[str, Any] | None) -> Iterator[Finding]:
    port, host = port_of(settings, http or {}), host_of(settings, http or {})
    yield ledger.check_ledger(settings.ledger, is_running=ports.is_aura(host, port))
    usages = [disk.probe("Ray's files", ray_folder())]
    if settings.drain_spool:
        yield disk.check_spool(settings.drain_spool)
        usages.append(disk.probe("the spool", settings.drain_spool))
    if isinstance(settings.ledger, LedgerFile) and settings.ledger.path:
        usages.insert(0, disk.probe("the ledger", settings.ledger.path.parent))
    if settings.model_checkpoint_dir:
        usages.append(disk.probe("the models", settings.model_checkpoint_dir))
    yield disk.check_free_space(usages)
