"""`ProofFile`: what was found out about batch invariance, remembered on disk.

At full size on a CPU the proof of strict mode takes longer than an image's first steps, and it
says the same at every start: it depends on the machine, the libraries' versions and the checkpoint.
A file that can't be read or written costs that time again, and nothing else.
"""

import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self

import torch

from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.runtime.lane_counts import MAX_ANSWERS

logger = logging.getLogger("aura.runtime")

_VERSION = 1  # grows with each change of the proof or of the file's form
_VARIABLES = (
    "ATEN_",
    "CUBLAS",
    "CUDA_",
    "CUDNN",
    "DNNL_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "NVIDIA_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "PYTORCH_",
    "TORCH_",
)
_NOT_CHOSEN_BY = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # a profile has the threads
MAX_PROFILES = 128  # that are remembered; those proved least recently are forgotten


@dataclass(frozen=True, slots=True)
class Proof:
    """What is known of a numeric profile on this machine."""

    lane_counts: tuple[int, ...]  # that keep a row's bits in small images
    answers: Mapping[str, bool] = field(default_factory=dict)  # by size, prompt length and count


class ProofFile:
    """The proofs of one machine, of which every process writes some."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def default(cls) -> Self | None:
        """Return that in the folder for a user's cache; None if there is no home folder."""
        cache = os.environ.get("XDG_CACHE_HOME")
        try:
            folder = Path(cache) if cache else Path.home() / ".cache"
        except RuntimeError:  # a container's user that has no entry in /etc/passwd
            return None
        return cls(folder / "aura-serve" / "batch-invariance.json")

    def read(self, profile: NumericProfile) -> Proof | None:
        """Return what is known of a profile; None if nothing is."""
        entry = self._entries().get(_key(profile))
        if not isinstance(entry, dict):
            return None
        counts, answers = entry.get("laneCounts"), entry.get("answers")
        if not isinstance(counts, list) or not isinstance(answers, dict):
            return None
        is_valid = (
            all(type(count) is int for count in counts)
            and counts == sorted(set(counts))
            and counts[:1] >= [1]
            and counts[-1:] == [profile.lanes]
            and all(type(answer) is bool for answer in answers.values())
        )
        return Proof(tuple(counts), answers) if is_valid else None

    def write(self, profile: NumericProfile, proof: Proof) -> None:
        """Remember what is known of a profile, with what others have found out meanwhile."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._path.with_suffix(".lock")):
                self._replace(self._with(profile, proof))
        except OSError as error:
            logger.info("%s can't be written: %s", self._path, error.strerror)

    def _with(self, profile: NumericProfile, proof: Proof) -> str:
        """Return the file's content with what is known of a profile."""
        entries, key, known = self._entries(), _key(profile), self.read(profile)
        answers = {**(known.answers if known else {}), **proof.answers}
        entries.pop(key, None)  # so that it is the last one again
        entries[key] = {
            "laneCounts": list(proof.lane_counts),
            "answers": _last(answers, MAX_ANSWERS),
        }
        return json.dumps({"version": _VERSION, "proofs": _last(entries, MAX_PROFILES)})

    def _entries(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_bytes())
            if content["version"] == _VERSION:
                return dict(content["proofs"])
        except FileNotFoundError:
            pass
        except (OSError, KeyError, TypeError, ValueError) as error:
            logger.info("%s can't be read: %s", self._path, error)
        return {}

    def _replace(self, text: str) -> None:
        with NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
            new = Path(file.name)
            try:
                file.write(text)
                file.flush()
                new.replace(self._path)
            except OSError:
                new.unlink()
                raise


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Keep other processes out; the system gives the lock up when this one ends."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _last(entries: Mapping[str, Any], count: int) -> dict[str, Any]:
    return dict(list(entries.items())[-count:])


def _key(profile: NumericProfile) -> str:
    machine = _machine(on_gpu=not profile.device.startswith("cpu"))
    return sha256(f"{profile!r} {machine}".encode()).hexdigest()[:16]


def _machine(*, on_gpu: bool) -> str:
    """Return what kernels are chosen by besides the profile."""
    chosen = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_VARIABLES) and name not in _NOT_CHOSEN_BY
    }
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    gpu = torch.cuda.get_device_properties(0) if on_gpu and torch.cuda.is_available() else None
    return repr(
        [
            platform.platform(),
            _processor(),
            os.cpu_count(),
            processors,
            torch.__config__.show(),
            torch.backends.cudnn.version(),
            gpu,
            sorted(chosen.items()),
        ]
    )


def _processor() -> list[str]:
    """Return what the system says of its first processor, but for what changes all the time."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return [platform.processor()]
    return [line for line in first if "MHz" not in line and "bogomips" not in line.lower()]
