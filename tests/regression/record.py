"""Write `record.json` and `pictures/`: what `test_same_pictures` compares with.

Run `python -m tests.regression.record` only when a picture was meant to change, or a case is new.
"""

import asyncio
import json
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.regression.cases import CASES
from tests.regression.service import Service

FOLDER = Path(__file__).parent
RECORD = FOLDER / "record.json"
PICTURES = FOLDER / "pictures"


def machine() -> dict[str, str]:
    """Return what bits depend on beside the code: equal machines give equal pictures."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.partition("+")[0],
    }


async def main() -> None:
    """Run every case and write its pictures and digests."""
    PICTURES.mkdir(exist_ok=True)
    digests: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder))
        for case in CASES:
            number = 0
            async for result in service.run(case):
                name = f"{case.name}-{number}" if case.expected_count > 1 else case.name
                digests[name] = result.digests
                file = PICTURES / f"{name}.webp"
                Image.fromarray(result.pixels).save(file, lossless=True, exact=True)
                number += 1
            assert number == case.expected_count, case.name
        service.close()
    record: dict[str, Any] = {"machine": machine(), "pictures": digests}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(digests)} pictures")


if __name__ == "__main__":
    asyncio.run(main())
