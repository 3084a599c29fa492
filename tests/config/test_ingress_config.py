"""What the ingress knows of the replicas that a config may have."""

from typing import Any

import pytest
from ray.serve import Deployment

from serve_app.app import http
from serve_app.config.app_args import AppArgs
from serve_app.config.settings import VARIABLES
from serve_app.core.capacity.placement import Cluster
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import SettingsError
from serve_app.deployments.graph import bind_service
from serve_app.deployments.ingress_replica import IngressConfig
from serve_app.ingress.open_requests import max_open_requests
from tests.support.ray_private import build_app


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def deployment_of(args: dict[str, Any], gpus: float, **settings: str) -> Deployment:
    """Return the ingress on a cluster with `gpus` GPUs."""
    app_args = AppArgs.model_validate(args | {"settings": {"MODEL_DEVICE": "cuda"} | settings})
    built = build_app(
        bind_service(app_args, Cluster(({"CPU": 8, "GPU": gpus},)), 8, http), name="aura"
    )
    (ingress,) = (entry for entry in built.deployments if entry.name == "Ingress")
    return ingress


def ingress_of(args: dict[str, Any], gpus: float, **settings: str) -> IngressConfig:
    """Return the config of the ingress on a cluster with `gpus` GPUs."""
    config: IngressConfig = deployment_of(args, gpus, **settings).init_args[0]
    return config


def test_serve_lets_an_ingress_have_far_more_requests_than_the_ingress_itself() -> None:
    """What Serve holds back has to wait, health checks too, which the ingress does not count."""
    most = 2000
    with pytest.raises(SettingsError):
        ingress_of({}, 4, MAX_OPEN_REQUESTS=str(most + 1))
    ingress = deployment_of({}, 4, MAX_OPEN_REQUESTS=str(most))
    assert ingress.max_ongoing_requests >= max_open_requests(most) + 1000


SCALING = {"base": {"max_replicas": 3}, "refiner": {"max_replicas": 2}}


def test_the_ingress_knows_how_many_replicas_fit_on_total_gpus() -> None:
    assert ingress_of(SCALING, 4).max_total_replicas is None
    assert ingress_of(SCALING, 4, TOTAL_GPUS="4").max_total_replicas == 4
    assert ingress_of(SCALING, 8, TOTAL_GPUS="4").max_total_replicas == 4
    assert ingress_of(SCALING, 4, TOTAL_GPUS="4", MODEL_DEVICE="cpu").max_total_replicas is None
    whole = {name: scale | {"num_gpus": 1} for name, scale in SCALING.items()}
    with pytest.raises(SettingsError, match="TOTAL_GPUS=1 has room for 1 replicas"):
        ingress_of(whole, 4, TOTAL_GPUS="1")


def test_stages_share_the_gpus_that_they_may_use_not_all_that_exist() -> None:
    assert ingress_of(SCALING, 8, TOTAL_GPUS="1").max_total_replicas == 2  # halves
    on_one_card = ingress_of({}, 8, TOTAL_GPUS="1")  # both stages, and neither scales
    assert on_one_card.max_total_replicas == 0


def test_the_ingress_knows_which_stage_may_scale_to_zero() -> None:
    to_zero = SCALING | {"refiner": {"min_replicas": 0, "max_replicas": 2}}
    assert ingress_of(to_zero, 4).scale_to_zero == (Stage.REFINER,)
    assert ingress_of(SCALING, 4).scale_to_zero == ()
    assert ingress_of({"combined": {"max_replicas": 2}}, 4).scale_to_zero == ()
