"""`build`, the import_path of serve_config.yaml: args in, bound Serve application out.

Serve calls it in a Ray task on some node of the cluster, not in your shell.
"""

import os
from functools import partial

import ray
from ray.serve import Application

from serve_app.config.app_args import AppArgs
from serve_app.config.settings import Settings
from serve_app.core.service.info import ServiceInfo
from serve_app.core.startup_error import startup_errors
from serve_app.deployments.graph import bind_service
from serve_app.deployments.ingress_replica import OpenHttp
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.http_ingress import HttpConfig, open_ingress


def build(args: AppArgs) -> Application:
    """Bind the application for this cluster.

    Raises `RuntimeError` with the fields of an `OperatorError`, which says what to do.
    """
    machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    cpus = min([os.cpu_count() or 1, *(int(cpus) for cpus in machines if cpus)])
    with startup_errors():
        return bind_service(args, ray.cluster_resources().get("GPU", 0), cpus, http)


def http(settings: Settings, info: ServiceInfo) -> OpenHttp:
    """Return what opens the HTTP side of an ingress replica with these settings."""
    config = HttpConfig(
        info=info,
        access_policy=AccessPolicy(
            keys=digests(settings.api_keys),
            anonymous=settings.allow_anonymous,
            hosts=settings.hosts,
            origins=settings.origins,
            max_body_bytes=settings.max_body_mib * 2**20,
        ),
        blocked_words=settings.blocked_words(),
        rate_limit=settings.rate_limit,
    )
    return partial(open_ingress, config)
