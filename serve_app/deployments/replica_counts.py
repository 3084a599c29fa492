"""How many replicas a deployment has, in Serve's options: fixed, or chosen by the policy of the
application (`deployments.autoscaling`) between bounds.

Knows no policy.
"""

from typing import Any

from ray.serve.config import AutoscalingConfig

_TOLD_EVERY = 1.0  # seconds between two accounts of what is owed
_UP, _DOWN = 10.0, 300.0  # seconds that an ingress must be wanted, or not


def stage_replicas(least: int, most: int, images: int) -> dict[str, Any]:
    """The options of a stage whose replicas step so many images together.

    Serve does at once what the policy says, which knows itself when to wait.
    """
    if least == most:
        return {"num_replicas": least}
    return {"autoscaling_config": _autoscaling(least, most, images, up=0, down=0)}


def ingress_replicas(least: int, most: int, callers: int) -> dict[str, Any]:
    """The options of an ingress of which each replica serves so many requests at a time.

    Fixed or not it is autoscaled: Serve asks only then what a replica has to tell the policy.
    """
    return {"autoscaling_config": _autoscaling(least, most, callers, up=_UP, down=_DOWN)}


def _autoscaling(
    least: int, most: int, requests: int, *, up: float, down: float
) -> AutoscalingConfig:
    config = AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        target_ongoing_requests=requests,
        upscale_delay_s=up,
        downscale_delay_s=down,
    )
    # As an argument it would warn of environment variables that are to take its place: Ray 2.60
    # names them, and reads them nowhere.
    return config.model_copy(update={"metrics_interval_s": _TOLD_EVERY})
