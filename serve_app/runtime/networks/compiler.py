"""torch.compile for UNets: how, where its code is kept, and what a machine lacks for it."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

COMPILE_MODES = ("off", "regions", "full")
_MAX_SHAPES = 4096  # for which a piece of code is compiled, of all models of a process
_COMPILERS = ("g++", "clang++", "c++")

Compile = Callable[[Any], Any]


def compiler(mode: str) -> Compile:
    """Return what compiles a UNet in a mode: "regions" or "full".

    Code is compiled for each shape anew, and kept on disk: TORCHINDUCTOR_CACHE_DIR, by default in
    the folder for a user's cache.
    """
    with suppress(RuntimeError):  # a container's user that has no home folder
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(cache, "aura-serve/inductor")))
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = _MAX_SHAPES
    dynamo.fail_on_recompile_limit_hit = True  # or the call would be eager, with other bits

    def compile(unet: Any) -> Any:
        if mode == "regions":
            unet.compile_repeated_blocks(dynamic=False)
        else:
            unet.compile(dynamic=False)
        return unet

    return compile


def compiler_problem(device: str) -> str:
    """Return what torch.compile lacks on a kind of device, "" if nothing."""
    if device == "mps":
        return "torch.compile is not supported on Apple GPUs here"
    chosen = os.environ.get("CXX")
    names = (chosen,) if chosen else _COMPILERS
    if not any(map(shutil.which, names)):
        return f"torch.compile needs a C++ compiler, and there is no {' or '.join(names)}"
    if device == "cuda" and find_spec("triton") is None:
        return "torch.compile needs Triton, which is not installed"
    return ""
