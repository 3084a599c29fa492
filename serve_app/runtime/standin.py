"""Where the stand-in checkpoint lives: it is there so that the whole road runs without a download.

It draws nothing one could recognise. Knows no torch until the folders have to be made.
"""

import os
import shutil
import tempfile
from pathlib import Path

SEED = 20230726
BASE, REFINER = "standin-base", "standin-refiner"


def cache_folder() -> Path:
    """Where generated files of this user may live (the XDG base directory rules)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aura-serve"


def ensure_standin(cache: Path) -> tuple[Path, Path]:
    """The folders of base and refiner under `cache`, built if they are not there yet.

    Safe when several processes ask at once: a finished build is renamed into place.
    """
    home = cache / f"standin-{SEED}"
    if not home.is_dir():
        from serve_app.runtime.standin_recipe import build_standin

        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="standin-", dir=cache))
        build_standin(draft)
        try:
            draft.rename(home)
        except OSError:  # another process was first
            shutil.rmtree(draft)
    return home / BASE, home / REFINER
