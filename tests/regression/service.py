"""The whole service in this process, without Ray: HTTP, conductor and a replica of both stages."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.info import ExtensionInfo, ModelInfo, ServiceInfo
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ExtensionSource, ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.runtime.checkpoints.bundled import demo_folder
from serve_app.runtime.checkpoints.checkpoint import inspect
from tests.regression.cases import Case
from tests.support.api import make_api
from tests.support.checkpoints import perturbed
from tests.support.local_stage import LocalStage, cpu_stage
from tests.support.lora_files import lora_file

INPUTS = Path(__file__).parent / "inputs"
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Result:
    """One picture: its pixels, (height, width, 3), and its `aura` chunk without profile names."""

    pixels: Pixels
    chunk: dict[str, Any]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the pixels, and of the chunk as canonical JSON."""
        text = json.dumps(self.chunk, sort_keys=True)
        return {
            "pixels": hashlib.sha256(self.pixels.tobytes()).hexdigest(),
            "chunk": hashlib.sha256(text.encode()).hexdigest(),
        }


class Service:
    """Answers the cases: a strict replica and a fast one, each with base and refiner."""

    def __init__(self, folder: Path) -> None:
        demo, refiner = demo_folder(Stage.BASE), demo_folder(Stage.REFINER)
        tune = perturbed(demo, folder / "tune")
        models = (
            ModelSource("demo", demo),
            ModelSource("tune", tune),
            ModelSource("demo-refiner", refiner, stage=Stage.REFINER),
        )
        names = ("demo", "tune")
        loras = (
            ExtensionSource(
                "lora", "ink", lora_file(demo, folder / "ink.safetensors", seed=1), names
            ),
            ExtensionSource(
                "lora", "oil", lora_file(demo, folder / "oil.safetensors", seed=2, ranks=[2]), names
            ),
        )
        noise = inspect(demo, Stage.BASE).noise_config
        facts = ServiceInfo(
            tuple(ModelInfo(name, 128, noise) for name in names),
            "demo-refiner",
            "cpu",
            "fp32",
            default_image_count=1,
            extensions=(
                ExtensionInfo("lora", "ink", names),
                ExtensionInfo("lora", "oil", names, default_weight=0.9),
            ),
            max_extensions=2,
        )
        config = cpu_stage(
            models,
            snapshot_interval_steps=10,
            max_loaded_models=3,
            extensions=loras,
            max_loaded_extensions=2,
        )
        self.replicas = {
            fast: StageReplica(replace(config, strict=not fast)) for fast in (False, True)
        }
        self._clients: dict[bool, httpx.AsyncClient] = {}
        for fast, replica in self.replicas.items():
            stage = LocalStage(replica)
            api = make_api(
                Conductor(stage, stage, facts.models, refiner_name=facts.refiner),
                Ledger(None),
                facts,
            )
            transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 1))
            self._clients[fast] = httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=300
            )

    async def run(self, case: Case) -> AsyncIterator[Result]:
        """Yield the case's pictures in order."""
        body = {name: value for name, value in case.body.items() if value is not None}
        if case.inputs:
            files = [(INPUTS / name).read_bytes() for name in case.inputs]
            body["images"] = [base64.b64encode(file).decode() for file in files]
        body["timeoutSeconds"] = 600  # all cases may wait for each other
        response = await self._clients[case.fast].post(case.route, json=body)
        assert response.status_code == 201, f"{case.name}: {response.text}"
        for text in response.json()["images"]:
            with Image.open(BytesIO(base64.b64decode(text))) as picture:
                chunk = json.loads(picture.info["aura"])
                assert set(chunk.pop("profiles")) <= {"base", "refiner"}
                yield Result(np.asarray(picture.convert("RGB")), chunk)

    def close(self) -> None:
        """Stop both engines."""
        for replica in self.replicas.values():
            replica.close()
