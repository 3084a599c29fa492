"""One at a time: the stock pipeline behind FastAPI, with a lock.

The program of a `ServerProcess`. It does what the usual example with a lock does, and leaves out
images whose client has gone while they waited.
"""

import asyncio
import sys

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from serve_app.bench.serve.systems.pil_png import to_png
from serve_app.bench.serve.systems.server_arguments import ServerArguments
from serve_app.bench.serve.systems.stock_pipeline import StockPipeline
from serve_app.bench.serve.systems.system import PNG
from serve_app.bench.serve.workload import ImageRequest


def build(pipeline: StockPipeline) -> FastAPI:
    """Return the application."""
    app, lock = FastAPI(), asyncio.Lock()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        image_request = ImageRequest(**await request.json())
        async with lock:
            if await request.is_disconnected():
                return Response(status_code=499)
            (image,) = await asyncio.to_thread(pipeline.images, [image_request])
        return Response(to_png(image), media_type=PNG)

    return app


if __name__ == "__main__":
    arguments = ServerArguments.parse(sys.argv[1:])
    stock = StockPipeline(arguments.checkpoint, arguments.threads, arguments.loras)
    uvicorn.run(build(stock), host="127.0.0.1", port=arguments.port, log_level="warning")
