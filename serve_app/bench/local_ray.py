"""A Ray of a bench's own, on loopback, with GPUs that are not there.

Knows no application.
"""

import logging
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve


@contextmanager
def local_ray(gpus: int) -> Iterator[tuple[int, Path]]:
    """Serve runs on so many GPUs; gives its port, and a folder that is there as long."""
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
    """One that nobody listens on; it may be taken by the next moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
