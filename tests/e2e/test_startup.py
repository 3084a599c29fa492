"""Starting under `serve run`: a problem is one line of text in the status."""

from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.config.app_args import AppArgs, DeploymentScale
from serve_app.config.catalog import choose_device
from serve_app.core.errors import SettingsError
from serve_app.deployments.ray_private import serve_client
from tests.support.checkpoints import broken_checkpoint
from tests.support.waiting import until

pytestmark = pytest.mark.ray


def test_under_serve_run_the_same_line_is_the_application_s_status(
    cluster: int, tmp_path: Path
) -> None:
    folder, sentence = broken_checkpoint("missing", tmp_path)
    application: dict[str, Any] = {
        "name": "broken",
        "route_prefix": "/broken",
        "import_path": "serve_app.app:build",
        "args": {"settings": {"MODEL_CHECKPOINT_DIR": str(folder)}},
    }
    client = serve_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))

    def failed() -> str | None:
        status = serve.status().applications.get("broken")
        return status.message if status and status.status == "DEPLOY_FAILED" else None

    message = until(failed, 90)
    assert message is not None
    assert f"MODEL_CHECKPOINT_DIR={folder} {sentence}" in message
    assert "aura download sdxl" in message
    serve.delete("broken")


@pytest.mark.parametrize(
    ("name", "gpus", "device"), [("auto", 0, "cpu"), ("auto", 4, "cuda"), ("cpu", 4, "cpu")]
)
def test_the_device_follows_what_ray_has(name: str, gpus: float, device: str) -> None:
    assert choose_device(name, gpus=gpus) == device


def test_one_gpu_of_many_is_refused_under_serve_run_with_the_line_to_export() -> None:
    with pytest.raises(SettingsError, match="export CUDA_VISIBLE_DEVICES=1 MODEL_DEVICE=cuda"):
        choose_device("cuda:1", gpus=4)


def test_args_are_validated() -> None:
    with pytest.raises(ValueError, match="min_replica\n"):
        AppArgs.model_validate({"base": {"min_replica": 2}})
    with pytest.raises(ValueError, match="must not be below"):
        DeploymentScale(min_replicas=3, max_replicas=2)
    assert DeploymentScale(min_replicas=3).effective_max_replicas == 3
