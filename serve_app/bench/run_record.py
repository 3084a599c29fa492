"""`RunRecord`: on which machine, with which versions, when and how a benchmark was run."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import psutil

_PACKAGES = ("aura-serve", "torch", "diffusers", "transformers", "ray", "numpy")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """On which machine, with which versions, when and how a benchmark was run."""

    command: str
    date: str  # UTC, RFC 3339
    processor: str
    cores: int  # that this process may use
    memory_gib: float
    system: str
    load: float  # of the machine when the run began: the mean number of running processes
    versions: Mapping[str, str]
    settings: Mapping[str, str]  # of the environment, which win over the benchmark's own

    @classmethod
    def now(cls, packages: Sequence[str] = _PACKAGES) -> Self:
        """Return the record of a run that begins now, by the command line of this process."""
        program = Path(sys.argv[0]).name
        name = "aura" if program in ("__main__.py", "aura") else program
        variables = ("MODEL_", "RAY_SERVE_", "TORCH_", "OMP_", "MKL_")
        return cls(
            command=" ".join([name, *sys.argv[1:]]),
            date=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            processor=_processor(),
            cores=len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else cpus(),
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            system=platform.platform(terse=True),
            load=round(os.getloadavg()[0], 2),
            versions={name: found for name in packages if (found := _version(name))}
            | {"python": platform.python_version()},
            settings={k: v for k, v in os.environ.items() if k.startswith(variables)},
        )

    @property
    def summary(self) -> str:
        """The record in one line, for captions."""
        return (
            f"{self.processor}, {self.cores} cores, load {self.load:g} at the start; "
            f"torch {self.versions.get('torch', '?')}; {self.date[:10]}"
        )

    def write(self, file: Path, results: Mapping[str, Any]) -> None:
        """Write the record and the results of its run as JSON."""
        text = json.dumps({"run": asdict(self)} | dict(results), indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


def cpus() -> int:
    """Return the logical processors of this machine."""
    return os.cpu_count() or 1


def _processor() -> str:
    """Return the processor's name as its maker writes it, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
