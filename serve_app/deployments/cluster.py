"""The cluster as Ray describes it: its nodes, and whether more may join."""

import os

import ray

from serve_app.core.capacity.placement import Cluster

_KUBERNETES = "KUBERNETES_SERVICE_HOST"  # which Kubernetes sets in every container


def session_name() -> str:
    """Return the name that Ray has given itself when it was started."""
    return str(ray.get_runtime_context().get_session_name())


def ray_cluster(started: str) -> Cluster:
    """Return the cluster that this process is connected to.

    `started` is the address that `ray start` wrote down on this machine. Nodes may join a cluster
    that was started so, one that has several nodes, and one on Kubernetes. None join the Ray that
    `up` or `serve run` starts for itself.
    """
    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    is_started = started != "" and started == ray.get_runtime_context().gcs_address
    return Cluster(nodes, is_started or len(nodes) > 1 or _KUBERNETES in os.environ)
