"""What the processor of this machine computes natively, as Linux reports it. No torch."""

import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = re.compile(r"^(?:flags|Features)\s*:\s*(.*)$", re.MULTILINE)  # x86, ARM
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def has_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether the processor has instructions for bf16.

    With them bf16 is faster than fp32, without them several times slower. False where the system
    does not say, as on macOS.
    """
    try:
        flags = _FLAGS.search(cpuinfo.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return False
    return flags is not None and not _BF16_FLAGS.isdisjoint(flags[1].split())
