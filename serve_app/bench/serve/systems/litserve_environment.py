"""An environment with LitServe, made on demand: this one is not changed.

LitServe and what it depends on are installed there. Everything else, torch and diffusers above all,
it takes from this environment, so that both run the same kernels.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from serve_app.core.errors import OperatorError

REQUIREMENT = "litserve==0.2.19"
BATCH_TIMEOUT_S = 0.05
BATCH_KINDS = 2  # a batch may have so many times the images of a call, since it has several kinds
_INSTALL_TIMEOUT = 300  # seconds


class LitServeUnavailable(OperatorError):
    """LitServe can't be installed here."""

    code = "LITSERVE_UNAVAILABLE"


def litserve_python() -> Path:
    """Return the interpreter of an environment with LitServe. Raises `LitServeUnavailable`."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = _cache() / f"{REQUIREMENT.replace('==', '-')}-python{version}"
    python, done = folder / "bin" / "python", folder / "done"
    if done.exists() and done.read_text(encoding="utf-8") == sys.prefix:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.create(folder, with_pip=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", REQUIREMENT],
            check=True,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT,
        )
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines()
        raise LitServeUnavailable(
            f"can't be installed: {lines[-1] if lines else error}", subject=REQUIREMENT
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LitServeUnavailable(f"can't be installed: {error}", subject=REQUIREMENT) from None
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    ours, root = sysconfig.get_path("purelib"), Path(__file__).parents[4]
    link = f"import site, sys; sys.path.append({str(root)!r}); site.addsitedir({ours!r})\n"
    (packages / "all_else.pth").write_text(link, encoding="utf-8")
    done.write_text(sys.prefix, encoding="utf-8")
    return python


def _cache() -> Path:
    """Return the folder for such environments, in that for a user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "aura" / "bench"
