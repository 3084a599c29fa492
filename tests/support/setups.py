"""`SetUp`: a working folder that a test can break, and fix as a person would."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.finding import Finding, Verdict
from serve_app.runtime.checkpoints import acceptance
from serve_app.runtime.checkpoints.acceptance import Acceptance
from serve_app.runtime.checkpoints.bundled import demo_folder

VARIABLES = (
    *(field.upper() for field in Settings.model_fields),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RAY_ADDRESS", "RAY_AUTH_MODE", "NO_COLOR"),
)
_FOLDERS = ("RAY_TMPDIR", "HOME")


@dataclass(frozen=True, slots=True)
class SetUp:
    """A working folder, its exported variables, and the port of the service."""

    folder: Path
    port: int
    monkeypatch: pytest.MonkeyPatch

    def set(self, **variables: object) -> None:
        """Append variables to .env.local."""
        lines = "".join(f"{name}={value}\n" for name, value in variables.items())
        with (self.folder / ".env.local").open("a") as file:
            file.write(lines)

    def export(self, **variables: object) -> None:
        """Set variables in the environment."""
        for name, value in variables.items():
            self.monkeypatch.setenv(name, str(value))

    def weights(self, stage: Stage = Stage.BASE, name: str = "models/sdxl-base") -> Path:
        """Add a complete checkpoint with an accepted licence, and set its variable."""
        folder = Path(shutil.copytree(demo_folder(stage), self.folder / name))
        accepted = Acceptance("artist/fox", "c0ffee", "mit", "", "2026-01-01T00:00:00+00:00")
        acceptance.write(folder, accepted)
        is_base = stage is Stage.BASE
        self.set(
            **{"MODEL_CHECKPOINT_DIR" if is_base else "MODEL_REFINER_CHECKPOINT_DIR": f"./{name}"}
        )
        return folder

    def list_models(self, models: str = "{}", loras: str = "{}") -> Path:
        """Write a MODELS_FILE and export its path."""
        file = self.folder / "models.yaml"
        file.write_text(f"models: {models}\nloras: {loras}\n")
        self.export(MODELS_FILE=file)
        return file

    def apply(self, fix: str) -> None:
        """Put a fix into .env.local, or run it in a shell, as a person would."""
        if Finding("", Verdict.FAIL, "", fix).is_for_env_file:
            return self.set(**dict([fix.split("=", 1)]))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = subprocess.run(
            ["bash", "-c", f"{fix}\nenv -0"],
            env=os.environ | {"PATH": path},
            capture_output=True,
            check=True,
        )
        lines = shell.stdout.decode().split("\0")
        exported = dict(line.split("=", 1) for line in lines if line)
        for name in (set(os.environ) | set(exported)) & {*VARIABLES, *_FOLDERS, "MODEL_DEVISE"}:
            if name in exported:
                self.monkeypatch.setenv(name, exported[name])
            else:
                self.monkeypatch.delenv(name)
        return None

    def edit_config(self, old: str, new: str) -> None:
        """Replace some text of the serve config."""
        config = self.folder / "serve_config.yaml"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))
