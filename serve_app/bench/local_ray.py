"""A Ray cluster for one benchmark, on loopback, with pretended GPUs."""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve


@contextmanager
def local_ray(gpus: int = 0) -> Iterator[tuple[int, Path]]:
    """Run Serve on a number of pretended GPUs; yield its HTTP port and a temporary folder.

    Its workers have the priority of other processes, with which they are compared: Ray's default
    is a niceness of 15.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        num_cpus=4,
        num_gpus=gpus,
        log_to_driver=False,
        logging_level=logging.WARNING,
        include_dashboard=False,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            port = free_port()
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield port, Path(folder)
    finally:
        serve.shutdown()
        ray.shutdown()


def free_port() -> int:
    """Return a port that is free now; another process may take it at any time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
