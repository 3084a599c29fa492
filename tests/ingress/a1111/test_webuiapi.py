"""`webuiapi`, a client of the web UI's API from PyPI, unmodified, over the demo."""

import io
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image

from serve_app.core.diffusion.spec import Stage
from serve_app.deployments.conductor import Conductor
from serve_app.deployments.ledger import Ledger
from serve_app.deployments.stage_config import ModelSource
from serve_app.deployments.stage_replica import StageReplica
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.runtime.checkpoints.bundled import FOLDER_NAMES, demo_folder
from tests.support.api import make_api
from tests.support.demo_api import demo_info
from tests.support.http_server import serving
from tests.support.local_stage import LocalStage, cpu_stage
from tests.support.waiting import until

KEYED = AccessPolicy(keys=digests(["a-key"]))
PROMPT = "a large yellow star on a black background"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Yield a client with a key, of a service with one replica of both stages."""
    info = demo_info()
    sources = [ModelSource(FOLDER_NAMES[stage], demo_folder(stage), stage=stage) for stage in Stage]
    replica = StageReplica(cpu_stage(sources, max_loaded_models=2, max_batch_images=4))
    stage = LocalStage(replica)
    api = make_api(Conductor(stage, stage, info.models), Ledger(None), info, KEYED)
    with serving(api) as address:
        client = webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1", sampler="Euler", steps=20)
        client.set_auth("user", "a-key")
        yield client
    replica.close()


def test_it_lists_what_there_is(client: Any) -> None:
    assert client.util_get_model_names() == ["demo"]
    assert client.util_get_current_model() == "demo"
    assert {"Euler", "DPM++ 2M"} <= {sampler["name"] for sampler in client.get_samplers()}
    assert {"Karras"} <= {schedule["label"] for schedule in client.get_schedulers()}
    assert client.get_loras() == client.get_sd_vae() == client.get_hypernetworks() == []
    assert client.get_scripts() == {"txt2img": [], "img2img": []}
    assert client.get_memory()["ram"]["total"] > 0
    assert client.get_cmd_flags()["api"] is True
    assert client.get_embeddings()["loaded"] == {}
    client.util_set_model("demo")
    client.refresh_checkpoints()


def test_it_draws_and_changes_a_picture(client: Any) -> None:
    made = client.txt2img(prompt=PROMPT, seed=7, width=128, height=128, batch_size=2)
    assert [image.size for image in made.images] == [(128, 128)] * 2
    assert (made.info["all_seeds"], made.parameters["prompt"]) == ([7, 8], PROMPT)
    pixels = np.asarray(made.image.convert("RGB")).astype(int)
    is_yellow = (pixels[..., :2].min(axis=-1) > 180) & (pixels[..., 2] < 120)
    is_black = pixels.max(axis=-1) < 60
    assert is_yellow.mean() > 0.05
    assert is_black.mean() > 0.5
    changed = client.img2img(
        images=[made.image], prompt="a large red heart on a white background", seed=3
    )
    assert changed.image.size[0] == changed.image.size[1]
    assert changed.info["denoising_strength"] == 0.75
    assert client.png_info(made.image).info.startswith(PROMPT)


def test_it_sees_progress_and_interrupts(client: Any) -> None:
    with ThreadPoolExecutor(1) as worker:
        running = worker.submit(
            client.txt2img, prompt=PROMPT, steps=150, width=128, height=128, batch_size=1
        )
        seen = until(lambda: _begun(client.get_progress()))
        assert 0 < seen["progress"] < 1
        assert seen["state"]["sampling_steps"] == 150
        preview = until(lambda: client.get_progress()["current_image"])
        assert Image.open(io.BytesIO(b64decode(preview))).format == "JPEG"
        assert client.interrupt() == {}
        with pytest.raises(RuntimeError, match="CANCELLED"):
            running.result(30)
    assert client.get_progress()["state"]["job_count"] == 0


def test_a_wrong_key_is_refused(client: Any) -> None:
    other = webuiapi.WebUIApi(baseurl=client.baseurl)
    other.set_auth("user", "another")
    with pytest.raises(RuntimeError, match="UNAUTHORIZED"):
        other.txt2img(prompt=PROMPT)


def _begun(progress: dict[str, Any]) -> dict[str, Any] | None:
    return progress if progress["progress"] else None
