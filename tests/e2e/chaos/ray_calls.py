"""What a chaos test does through Ray, in its own process or in one that has a Ray of its own."""

import ray
from ray import serve

from serve_app.core.diffusion.spec import Stage
from serve_app.core.service.events import ReplicaStats
from serve_app.testing.faulty_service import DEPLOYMENTS, FaultyArgs, build, build_ingress
from tests.support.ports import free_port

_OBJECT_STORE = 150 * 2**20  # bytes
_CPUS = 4  # more than the machine may have: sleeping takes none


def start(port: int) -> None:
    """Start Ray and Serve's proxy."""
    ray.init(
        num_cpus=_CPUS,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE,
        log_to_driver=False,
        configure_logging=False,
        _metrics_export_port=free_port(),
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})


def deploy(app: str, route: str, args: FaultyArgs) -> None:
    """Deploy the application, and return when it runs."""
    serve.run(build(args), name=app, route_prefix=route)


def deploy_ingress(app: str, route: str, args: FaultyArgs, stages: str) -> None:
    """Deploy an ingress of its own over another application's stages."""
    serve.run(build_ingress(args, stages), name=app, route_prefix=route)


def delete(app: str) -> None:
    """Delete the application."""
    serve.delete(app)


def stats(app: str, stage: Stage) -> list[ReplicaStats]:
    """Return the stats of the stage's replicas that answer; a dead one may be listed."""
    handle = serve.get_deployment_handle(DEPLOYMENTS[stage], app)
    try:
        results = handle.broadcast("stats").results(timeout_s=5, return_exceptions=True)
    except Exception:  # no replica, or one that died during the call
        return []
    return [result for result in results if isinstance(result, ReplicaStats)]


def unwell(app: str, stage: Stage) -> list[str]:
    """Return what the stage's replicas that fail their health check say."""
    handle = serve.get_deployment_handle(DEPLOYMENTS[stage], app)
    results = handle.broadcast("check_health").results(timeout_s=5, return_exceptions=True)
    return [str(result) for result in results if result is not None]


def stop() -> None:
    """Stop everything, however far the start came."""
    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()
