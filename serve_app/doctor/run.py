"""The whole examination: what is looked at, in which order, and what depends on what.

A check that fails itself is a finding too. Knows no terminal.
"""

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from serve_app.config.app_args import AppArgs
from serve_app.config.catalog import max_batch_images, precision_of
from serve_app.config.serve_config import host_of, port_of
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.checks import (
    access,
    capacity,
    disk,
    gpu_probe,
    gpus,
    machine,
    models,
    ports,
    ray_cluster,
)
from serve_app.doctor.checks.gpu_memory import Weights
from serve_app.doctor.checks.gpu_probe import GpuReport
from serve_app.doctor.checks.machine import Machine
from serve_app.doctor.checks.models import Models
from serve_app.doctor.checks.ray_cluster import Cluster
from serve_app.doctor.finding import Finding, Verdict, fail, skip
from serve_app.doctor.inputs import read_serve_config, read_settings
from serve_app.runtime.checkpoints.checkpoint import num_parameters

_NEEDS_SETTINGS = {
    "models": ("base", "models file", "device", "precision", "memory"),
    "callers": ("port", "address", "keys", "origins"),
    "disk": ("ledger", "disk"),
}


@dataclass(frozen=True, slots=True)
class Probes:
    """What is examined: each a fact, or what looks for it. The defaults look at this machine."""

    config: Path = Path("serve_config.yaml")
    machine: Callable[[], Machine] = machine.probe
    graphics: Callable[[], GpuReport] = gpu_probe.probe
    cluster: Callable[[], Cluster] = ray_cluster.probe


class Inputs:
    """What is found out once, when it is first needed: looking may fail like any check."""

    def __init__(self, grounds: Probes) -> None:
        self._grounds = grounds

    @cached_property
    def machine(self) -> Machine:
        """The machine."""
        return self._grounds.machine()

    @cached_property
    def graphics(self) -> GpuReport:
        """torch and the cards."""
        return self._grounds.graphics()

    @cached_property
    def cluster(self) -> Cluster:
        """Ray, from outside."""
        return self._grounds.cluster()


@dataclass(frozen=True, slots=True)
class Section:
    """Findings that belong together."""

    title: str
    findings: tuple[Finding, ...]


def run(probes: Probes) -> tuple[Section, ...]:
    """Everything, in the order in which a person would mend it."""
    facts = Inputs(probes)
    http, args, of_config = read_serve_config(probes.config)
    settings, of_settings = read_settings(args)
    config = shlex.quote(str(probes.config))
    sections = {
        "machine": _machine(facts),
        "settings": iter((of_config, of_settings)),
        "models": _needing(settings, "models", lambda s: _models(s, args, facts, config)),
        "callers": _needing(settings, "callers", lambda s: _callers(s, http)),
        "ray": _ray(facts),
        "disk": _needing(settings, "disk", _disk),
    }
    return tuple(
        Section(title, tuple(one.for_environment(os.environ) for one in _guarded(title, findings)))
        for title, findings in sections.items()
    )


def _needing(
    settings: Settings | None, title: str, findings: Callable[[Settings], Iterator[Finding]]
) -> Iterator[Finding]:
    if settings is None:
        reason = "not examined, because the settings can't be read"
        return iter([skip(check, reason) for check in _NEEDS_SETTINGS[title]])
    return findings(settings)


def _guarded(title: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings, and one more where looking for them fails."""
    try:
        yield from findings
    except Exception as error:  # of whatever a broken set-up makes of our own looking
        told = " ".join(str(error).split())[:300]
        yield fail(title, f"can't be examined: {type(error).__name__}: {told}", machine.INSTALL)


def _machine(facts: Inputs) -> Iterator[Finding]:
    yield machine.check_python(facts.machine)
    yield machine.check_platform(facts.machine)
    yield machine.check_packages(facts.machine)
    yield gpus.check_torch(facts.graphics, facts.machine)
    yield machine.check_clock(facts.machine)


def _models(settings: Settings, args: AppArgs, facts: Inputs, config: str) -> Iterator[Finding]:
    found, findings = models.find(settings)
    yield from findings
    found, of_file = models.find_listed(settings, found)
    yield of_file
    downloads = models.check_downloads(settings, found)
    yield downloads
    yield models.check_token(findings, downloads)
    if found.whole:
        yield models.check_licenses(settings, found)
    yield models.check_filters(settings)
    of_device = gpus.check_device(settings, facts.graphics, demo=found.demo)
    yield of_device
    yield gpus.check_precision(settings, facts.graphics)
    yield gpus.check_xformers(settings, gpus.probe_xformers(settings, facts.graphics))
    if found.base is None or of_device.verdict in (Verdict.FAIL, Verdict.SKIP):
        yield skip("memory", "not examined, because the base or the device can't be used")
        return
    yield from _room(settings, args, facts, found, config)


def _room(
    settings: Settings, args: AppArgs, facts: Inputs, found: Models, config: str
) -> Iterator[Finding]:
    device = gpus.device_of(settings, facts.graphics)
    there = gpus.chosen(settings, facts.graphics)
    models = [Weights(one.stage, num_parameters(one), one.native_size) for one in found.whole]
    bases = [one for one in models if one.stage is Stage.BASE]
    refiner = next((one for one in models if one.stage is Stage.REFINER), None)
    in_memory = settings.max_loaded_models
    load = capacity.Load(
        capacity.replicas_of(args, bases, refiner, device, len(there), in_memory),
        images=max_batch_images(settings, device),
        precision=precision_of(settings, device),
        vae_half=device == "cuda" and all(card.bf16 for card in there),
    )
    if facts.cluster.named and facts.cluster.answers:
        yield skip("memory", f"not examined: the cards of {facts.cluster.address} count")
        return
    if device != "cuda":
        yield capacity.check_ram(load, facts.machine.memory)
        return
    yield capacity.check_gpus(load, there, config)
    yield capacity.check_vram(load, there)
    yield from capacity.check_copies(load, there, facts.machine.memory)


def _callers(settings: Settings, http: dict[str, Any] | None) -> Iterator[Finding]:
    options = http or {}
    port, host = port_of(settings, options), host_of(settings, options)
    yield ports.check_service_port(host, port)
    yield access.check_address(settings, port)
    yield access.check_keys(settings, options.get("host"))
    yield access.check_origins(settings, port)


def _ray(facts: Inputs) -> Iterator[Finding]:
    yield ray_cluster.check_cluster(facts.cluster)
    yield ray_cluster.check_exposure(facts.cluster)


def _disk(settings: Settings) -> Iterator[Finding]:
    yield disk.check_ledger(settings.ledger)
    found = [
        disk.probe("the ledger", settings.ledger.parent),
        disk.probe("Ray's files", Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())),
    ]
    if settings.model_checkpoint_dir:
        found.append(disk.probe("the models", settings.model_checkpoint_dir))
    yield disk.check_room(found)
