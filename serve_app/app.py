"""`build`, the import_path of serve_config.yaml: args in, bound Serve application out.

Serve calls it in a Ray task on some node of the cluster, not in your shell.
"""

import os
from functools import partial

from ray.serve import Application

from serve_app.config.app_args import AppArgs
from serve_app.config.cloud_model import gemini_options
from serve_app.config.folders import started_cluster
from serve_app.config.key_numbers import daily_quotas_by_key, weights_by_key
from serve_app.config.settings import Settings
from serve_app.core.capacity.placement import CPU
from serve_app.core.service.info import ServiceInfo
from serve_app.core.startup_error import startup_errors
from serve_app.deployments.cluster import ray_cluster, session_name
from serve_app.deployments.graph import bind_service
from serve_app.deployments.ingress_replica import OpenHttp
from serve_app.ingress.access import AccessPolicy, by_caller, digests
from serve_app.ingress.http_ingress import HttpConfig, open_ingress


def build(args: AppArgs) -> Application:
    """Bind the application for this cluster.

    Raises `RuntimeError` with the fields of an `OperatorError`, which says what to do.
    """
    cluster = ray_cluster(started_cluster())
    machines = [int(node.get(CPU, 0)) for node in cluster.nodes]
    cpus = min([os.cpu_count() or 1, *filter(None, machines)])
    with startup_errors("the application"):
        return bind_service(args, cluster, cpus, http, session_name())


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
            max_open_body_bytes=max(settings.max_open_bodies_mib, settings.max_body_mib) * 2**20,
        ),
        blocked_words=settings.blocked_words(),
        rate_limit=settings.rate_limit,
        max_jobs=settings.max_open_requests,
        caller_weights=by_caller(weights_by_key(settings)),
        daily_quotas=by_caller(daily_quotas_by_key(settings)),
        spool=settings.drain_spool,
        base_url=settings.image_service_base_url,
        webhook_receivers=settings.webhook_urls,
        gemini=gemini_options(settings),
        a1111=settings.a1111_api,
        mcp=settings.mcp_api,
    )
    return partial(open_ingress, config)
