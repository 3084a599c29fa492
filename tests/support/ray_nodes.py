"""A Ray of two nodes, and the service on it: functions for a process of its own, since the one that
runs the tests may have joined another Ray.

Knows no test. Both nodes are on this machine, at its loopback address. A base replica takes the
only GPU of a node, which is not there, and a refiner all of its CPUs but the ingress's. So a node
has room for one of each, and only the head node for the ingress.
"""

from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema

from serve_app.core.service.events import ReplicaStats
from serve_app.deployments.ray_private import serve_client
from tests.support.ports import free_port
from tests.support.service import APP, STAGES

_INGRESS = 1  # CPUs, which the head node has more than the others
_REFINER = 2  # CPUs, all that the others have: two refiners are more than a head node's
_NODE = {"num_gpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20}
_STORED = 1000  # bytes: what is larger goes by the object store, as SDXL's snapshots do

_cluster: list[Cluster] = []


def start(port: int, ledger: str) -> None:
    """The head node runs, and on it Serve, its proxy, the ingress and the ledger. It has room for
    half of the stages' replicas: the others wait for a node."""
    head = _NODE | {
        "num_cpus": _REFINER + _INGRESS,
        "include_dashboard": False,
        "dashboard_port": free_port(),
        "dashboard_agent_listen_port": None,  # any: another Ray here has the usual one
        "_system_config": {"max_direct_call_object_size": _STORED},
    }
    _cluster.append(Cluster(initialize_head=True, head_node_args=head))
    ray.init(address=_cluster[0].address, log_to_driver=False, configure_logging=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    application: dict[str, Any] = {
        "name": APP,
        "import_path": "serve_app.app:build",
        "args": {
            "ingress": {"num_cpus": _INGRESS},
            "base": {"min_replicas": 2, "num_gpus": 1, "num_cpus": 0},
            "refiner": {"min_replicas": 2, "num_gpus": 0, "num_cpus": _REFINER},
            "settings": {
                "LEDGER_FILE": ledger,
                "MODEL_DEVICE": "cpu",
                "MODEL_CPU_THREADS": "1",
                "MODEL_MAX_BATCH_SIZE": "4",
            },
        },
    }
    client = serve_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))


def add() -> str:
    """Another node has joined; its id."""
    return str(_cluster[0].add_node(num_cpus=_REFINER, **_NODE).node_id)


def lose(node: str) -> None:
    """The node's processes are gone, all at once and without a word."""
    (lost,) = (one for one in _cluster[0].worker_nodes if one.node_id == node)
    _cluster[0].remove_node(lost, allow_graceful=False)


def alive() -> set[str]:
    """The nodes that Ray takes to be alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def places() -> dict[str, dict[int, str]]:
    """Where Serve takes the running replicas of each deployment to be: node by process."""
    deployments = serve_client().get_serve_details()["applications"][APP]["deployments"]
    return {
        name: {r["pid"]: r["node_id"] for r in one["replicas"] if r["state"] == "RUNNING"}
        for name, one in deployments.items()
    }


def facts(stage: str) -> dict[str, ReplicaStats]:
    """The facts of the stage's replicas that answer, by node."""
    where = places()[STAGES[stage]]
    handle = serve.get_deployment_handle(STAGES[stage], APP)
    found = handle.broadcast("stats").results(timeout_s=10, return_exceptions=True)
    told = [one for one in found if isinstance(one, ReplicaStats)]
    return {where[one.pid]: one for one in told if one.pid in where}


def stop() -> None:
    """Nothing of it runs any more, however far it came."""
    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()
    while _cluster:
        _cluster.pop().shutdown()
