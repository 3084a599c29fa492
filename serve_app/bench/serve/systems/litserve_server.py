"""LitServe around the stock pipeline, with its own batching.

The program of a `ServerProcess`, in an environment with LitServe: see `litserve_environment`.
"""

import sys
from collections.abc import Mapping
from typing import Any

import litserve
from starlette.responses import Response

from serve_app.bench.serve.systems.litserve_environment import BATCH_KINDS, BATCH_TIMEOUT_S
from serve_app.bench.serve.systems.pil_png import to_png
from serve_app.bench.serve.systems.server_arguments import ServerArguments
from serve_app.bench.serve.systems.stock_pipeline import StockPipeline, by_kind
from serve_app.bench.serve.systems.system import PNG
from serve_app.bench.serve.workload import ImageRequest


class StockApi(litserve.LitAPI):  # type: ignore[misc]  # our environment has no LitServe
    """A batch may have several kinds of request: those of one kind share a call."""

    def __init__(
        self, checkpoint: str, threads: int, loras: Mapping[str, str], images: int
    ) -> None:
        super().__init__(
            max_batch_size=images * BATCH_KINDS,
            batch_timeout=BATCH_TIMEOUT_S,
            api_path="/generate",
        )
        self._checkpoint, self._threads, self._loras = checkpoint, threads, loras
        self._images = images

    def setup(self, device: str) -> None:
        """See `LitAPI`."""
        self.pipeline = StockPipeline(self._checkpoint, self._threads, self._loras)

    def decode_request(self, request: dict[str, Any]) -> ImageRequest:
        """See `LitAPI`."""
        return ImageRequest(**request)

    def batch(self, inputs: list[ImageRequest]) -> list[ImageRequest]:
        """See `LitAPI`."""
        return inputs

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """See `LitAPI`."""
        return output

    def predict(self, requests: list[ImageRequest]) -> list[bytes]:
        """Return the images as PNG."""
        pngs = [b""] * len(requests)
        for numbers in by_kind(requests, self._images):
            images = self.pipeline.images([requests[number] for number in numbers])
            for number, image in zip(numbers, images, strict=True):
                pngs[number] = to_png(image)
        return pngs

    def encode_response(self, output: bytes) -> Response:
        """See `LitAPI`."""
        return Response(output, media_type=PNG)


if __name__ == "__main__":
    arguments = ServerArguments.parse(sys.argv[1:])
    api = StockApi(arguments.checkpoint, arguments.threads, arguments.loras, arguments.images)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, timeout=False)
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        generate_client_file=False,
        log_level="warning",
        num_api_servers=1,
    )
