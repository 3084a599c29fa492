"""The scaling of a deployment as Ray Serve options: a fixed number of replicas, or bounds.

Between the bounds the application's policy (`deployments.autoscaling`) decides.
"""

from typing import Any

from ray.serve.config import AutoscalingConfig

_REPORT_INTERVAL = 1.0  # seconds between two reports of the ingress to the policy
# Seconds that another number of ingress replicas must have been wanted.
_INGRESS_UPSCALE_DELAY, _INGRESS_DOWNSCALE_DELAY = 10.0, 300.0


def stage_scaling(min_replicas: int, max_replicas: int, images: int) -> dict[str, Any]:
    """Return the options of a stage whose replicas step `images` images together.

    The delays are 0, because the policy itself decides when to wait.
    """
    if min_replicas == max_replicas:
        return {"num_replicas": min_replicas}
    return {
        "autoscaling_config": _autoscaling(
            min_replicas, max_replicas, images, upscale_delay=0, downscale_delay=0
        )
    }


def ingress_scaling(min_replicas: int, max_replicas: int, requests: int) -> dict[str, Any]:
    """Return the options of an ingress whose replicas each serve `requests` requests at a time.

    It is autoscaled even if the bounds are equal: Serve collects a replica's reports to the policy
    only from a deployment that is autoscaled.
    """
    return {
        "autoscaling_config": _autoscaling(
            min_replicas,
            max_replicas,
            requests,
            upscale_delay=_INGRESS_UPSCALE_DELAY,
            downscale_delay=_INGRESS_DOWNSCALE_DELAY,
        )
    }


def _autoscaling(
    min_replicas: int,
    max_replicas: int,
    requests: int,
    *,
    upscale_delay: float,
    downscale_delay: float,
) -> AutoscalingConfig:
    config = AutoscalingConfig(
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        target_ongoing_requests=requests,
        upscale_delay_s=upscale_delay,
        downscale_delay_s=downscale_delay,
    )
    # As an argument, this field would cause a warning to use environment variables instead, which
    # Ray 2.60 names but does not read.
    return config.model_copy(update={"metrics_interval_s": _REPORT_INTERVAL})
