"""`SetUp`: a working folder that can be broken, and mended as a person would mend it."""

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
from serve_app.hub.acceptance import Acceptance, record
from serve_app.runtime.checkpoints.bundled import demo_folder

OURS = (
    *(field.upper() for field in Settings.model_fields),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RAY_ADDRESS", "RAY_AUTH_MODE", "NO_COLOR"),
)


@dataclass(frozen=True, slots=True)
class SetUp:
    """A working folder, what is exported, and the port the service would take."""

    folder: Path
    port: int
    monkeypatch: pytest.MonkeyPatch

    def set(self, **variables: object) -> None:
        """Variables stand in .env.local."""
        lines = "".join(f"{name}={value}\n" for name, value in variables.items())
        with (self.folder / ".env.local").open("a") as file:
            file.write(lines)

    def export(self, **variables: object) -> None:
        """Variables stand in the environment."""
        for name, value in variables.items():
            self.monkeypatch.setenv(name, str(value))

    def weights(self, stage: Stage = Stage.BASE, name: str = "models/sdxl-base") -> Path:
        """A whole checkpoint lies there, its licence accepted, and the service is told."""
        folder = Path(shutil.copytree(demo_folder(stage), self.folder / name))
        record(folder, Acceptance("artist/fox", "c0ffee", "mit", "", "2026-01-01T00:00:00+00:00"))
        base = stage is Stage.BASE
        self.set(
            **{"MODEL_CHECKPOINT_DIR" if base else "MODEL_REFINER_CHECKPOINT_DIR": f"./{name}"}
        )
        return folder

    def listing(self, models: str = "{}", loras: str = "{}") -> Path:
        """MODELS_FILE, exported, says so."""
        file = self.folder / "models.yaml"
        file.write_text(f"models: {models}\nloras: {loras}\n")
        self.export(MODELS_FILE=file)
        return file

    def paste(self, mend: str) -> None:
        """A mend is put into .env.local, or into the shell, as a person would."""
        if Finding("", Verdict.FAIL, "", mend).is_for_env_file:
            return self.set(**dict([mend.split("=", 1)]))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", f"{mend}\nenv -0"],
            env=os.environ | {"PATH": path},
            capture_output=True,
            check=True,
        )
        after = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
        for name in (set(os.environ) | set(after)) & {*OURS, "MODEL_DEVISE"}:
            if name in after:
                self.monkeypatch.setenv(name, after[name])
            else:
                self.monkeypatch.delenv(name)

    def edit_config(self, old: str, new: str) -> None:
        """The serve config says something else."""
        config = self.folder / "serve_config.yaml"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))
