"""The environment of the Ray that `aura up` starts: its network, its memory, its device.

Ray gives it to all processes of this machine. What the operator has set stands.
"""

from collections.abc import Mapping

from serve_app.config.settings import Settings
from serve_app.process import allocator

_MIB = 2**20


def ray_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the process that runs Ray, made of this process's own."""
    environment = {
        **metrics_environment(settings.metrics_port),
        **memory_environment(settings.max_body_mib, environ),
        **environ,
    }
    if settings.model_device.startswith("cuda:"):
        environment["CUDA_VISIBLE_DEVICES"] = settings.model_device.removeprefix("cuda:")
        environment |= dict.fromkeys(("MODEL_DEVICE", "AURA_MODEL_DEVICE"), "cuda")
    return environment


def metrics_environment(port: int | None) -> dict[str, str]:
    """Return the variables that keep Ray's metrics to this machine, where `up` starts Ray.

    Ray's metrics agent binds to all interfaces unless the address of the node is loopback. Ray uses
    loopback when clustering is disabled, which the variable named after Windows and macOS does.
    Without METRICS_PORT metrics are off: Ray would choose a port.
    """
    if port is None:
        return {"RAY_enable_metrics_collection": "0"}
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def memory_environment(max_body_mib: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which processes give back the memory of large bodies.

    A message of more than 100 KB goes through Ray's object store by default, whose pages then stay
    mapped in each process that has touched them, the ingress above all. Messages up to the largest
    body go from process to process instead.
    """
    size = str((max_body_mib + 1) * _MIB)  # of a body and what its pieces are wrapped in
    return allocator.environment(environ) | {
        "RAY_max_direct_call_object_size": size,
        "RAY_task_rpc_inlined_bytes_limit": size,
    }
