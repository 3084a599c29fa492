"""Every route of the API, as the app itself has it."""

import re
from collections.abc import Iterator
from typing import Any

from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy
from serve_app.ingress.app import build_routes
from serve_app.ingress.job_service import JobService
from serve_app.ingress.services import ApiServices
from tests.support.fake_conductor import INFO, FakeConductor

_EXAMPLES = {
    "id": "x",
    "job": "x",
    "number": "0",
    "format": "png",
    "name": "gpt-image-1",
    "path": "docs.js",
}


def every_route() -> list[tuple[str, str]]:
    """Return method and path of every route, with an example of each parameter; HEAD left out."""
    maker = FakeConductor()
    jobs = JobService(maker, Ledger(None), INFO)
    api = build_routes(ApiServices(jobs, maker, INFO, "1"), AccessPolicy())
    return sorted(
        (method, _example(route.path))
        for route in _leaves(api.routes)
        for method in route.methods - {"HEAD"}
    )


def _leaves(routes: Any) -> Iterator[Any]:
    for route in routes:
        inner = getattr(getattr(route, "original_router", None), "routes", None)
        yield from _leaves(inner) if inner else [route]


def _example(template: str) -> str:
    return re.sub(r"{(\w+)(:path)?}", lambda parameter: _EXAMPLES[parameter[1]], template)
