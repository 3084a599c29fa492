"""A Ray of two nodes with the service on it.

The functions run in a process of their own, because the one that runs the tests may have joined
another Ray. Both nodes are on this machine, at its loopback address. A base replica takes the only
(pretended) GPU of a node, and a refiner all of its CPUs but the ingress's. So a node has room for
one of each, and only the head node for the ingress.
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

_INGRESS = 1  # CPUs that only the head node has
_REFINER = 2  # CPUs, all of another node: the head node has too few for two refiners
_NODE = {"num_gpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20}
_MAX_INLINE = 1000  # bytes: larger values use the object store, as SDXL's snapshots do

_cluster: list[Cluster] = []


def start(port: int, ledger: str) -> None:
    """Start the head node with Serve, its proxy, the ingress and the ledger.

    It has room for half of the stages' replicas: the others wait for a node.
    """
    head = _NODE | {
        "num_cpus": _REFINER + _INGRESS,
        "include_dashboard": False,
        "dashboard_port": free_port(),
        "dashboard_agent_listen_port": None,  # any: another Ray may have the default
        "_system_config": {"max_direct_call_object_size": _MAX_INLINE},
    }
    _cluster.append(Cluster(initialize_head=True, head_node_args=head))
    ray.init(address=_cluster[0].address, log_to_driver=False, configure_logging=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    application: dict[str, Any] = {
        "name": APP,
        "import_path": "serve_app.app:build",
        "args": {
            "ingress": {"min_replicas": 1, "num_cpus": _INGRESS},
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


def start_bare() -> str:
    """Start a head node without a GPU and without the service; return its address."""
    head = _NODE | {
        "num_cpus": _REFINER,
        "num_gpus": 0,
        "include_dashboard": False,
        "dashboard_port": free_port(),
        "dashboard_agent_listen_port": None,
    }
    _cluster.append(Cluster(initialize_head=True, head_node_args=head))
    return str(_cluster[0].address)


def add() -> str:
    """Add a node and return its id."""
    options: dict[str, Any] = {"num_cpus": _REFINER, **_NODE}
    return str(_cluster[0].add_node(**options).node_id)


def lose(node: str) -> None:
    """Kill all processes of a node at once."""
    (lost,) = (worker for worker in _cluster[0].worker_nodes if worker.node_id == node)
    _cluster[0].remove_node(lost, allow_graceful=False)


def alive() -> set[str]:
    """Return the nodes that Ray believes to be alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def places() -> dict[str, dict[int, str]]:
    """Return the node of each running replica by process, for each deployment."""
    deployments = serve_client().get_serve_details()["applications"][APP]["deployments"]
    return {
        name: {
            replica["pid"]: replica["node_id"]
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }
        for name, deployment in deployments.items()
    }


def stats(stage: str) -> dict[str, ReplicaStats]:
    """Return the stats of the stage's replicas that respond, by node."""
    nodes = places()[STAGES[stage]]
    handle = serve.get_deployment_handle(STAGES[stage], APP)
    results = handle.broadcast("stats").results(timeout_s=10, return_exceptions=True)
    replicas = [result for result in results if isinstance(result, ReplicaStats)]
    return {nodes[replica.pid]: replica for replica in replicas if replica.pid in nodes}


def stop() -> None:
    """Stop everything, however far the start came."""
    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()
    while _cluster:
        _cluster.pop().shutdown()
