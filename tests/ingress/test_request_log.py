"""One line in the log for each request: what it has, and what it never has."""

import logging

import pytest

from serve_app.core.service.events import GeneratedImage
from serve_app.core.service.tasks import ImageTask
from serve_app.ingress.access import AccessPolicy, digests, key_digest
from serve_app.ingress.request_log import log_request
from tests.support.api import Client
from tests.support.fake_conductor import FakeConductor

BODY = {"prompt": "a secret fox", "imageCount": 2}


class BrokenConductor(FakeConductor):
    """A maker with a fault that has no name."""

    async def generate(self, task: ImageTask) -> GeneratedImage:
        raise KeyError("boom")


def access_lines(caplog: pytest.LogCaptureFixture, level: str = "INFO") -> list[str]:
    """Return the lines of the access log at one level."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "aura.access" and record.levelname == level
    ]


async def test_a_line_has_route_status_time_images_and_ids(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aura")
    http = client(headers={"X-Request-Id": "my-1"})
    response = await http.post("/generate?token=hidden", json=BODY)
    (line,) = access_lines(caplog)
    assert line.startswith('address:127.0.0.1 - "POST /generate HTTP/1.1" 201 Created ')
    job = response.json()["meta"]["jobId"]
    assert line.endswith(f"ms images=2 job_id={job} request_id=my-1")
    (fields,) = [record.__dict__["fields"] for record in caplog.records]
    assert fields == {
        "method": "POST",
        "route": "/generate",
        "status": 201,
        "duration_ms": fields["duration_ms"],
        "caller": "address:127.0.0.1",
        "images": 2,
        "job_id": job,
        "request_id": "my-1",
    }


@pytest.mark.parametrize(
    ("method", "path", "start"),
    [
        ("GET", "/jobs/a-secret?key=k", 'address:127.0.0.1 - "GET /jobs/{id} HTTP/1.1" 404 Not '),
        ("GET", "/secret/path", 'address:127.0.0.1 - "GET unmatched HTTP/1.1" 404 Not Found '),
        ("GET\t", "/livez", 'address:127.0.0.1 - "other /livez HTTP/1.1" 405 Method Not Allowed '),
    ],
)
async def test_a_line_has_nothing_that_a_client_wrote(
    client: Client, caplog: pytest.LogCaptureFixture, method: str, path: str, start: str
) -> None:
    caplog.set_level(logging.DEBUG, "aura")
    await client().request(method, path)
    lines = access_lines(caplog) + access_lines(caplog, "DEBUG")
    assert [line[: len(start)] for line in lines] == [start]
    assert "secret" not in caplog.text


async def test_a_caller_has_the_name_of_its_key_and_a_refused_one_has_none(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aura")
    http = client(policy=AccessPolicy(keys=digests(["k-1"])))
    await http.post("/generate", json=BODY)
    await http.post("/generate", json=BODY, headers={"Authorization": "Bearer k-1"})
    refused, served = access_lines(caplog)
    assert refused.startswith('- - "POST /generate HTTP/1.1" 401 Unauthorized ')
    assert served.startswith(f'key:{key_digest(b"k-1")[:12]} - "POST /generate HTTP/1.1" 201 ')


async def test_probes_are_logged_at_debug_alone(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aura")
    for path in ("/health", "/livez", "/licenses"):
        await client().get(path)
    assert [line.split()[3] for line in access_lines(caplog)] == ["/licenses"]
    assert [line.split()[3] for line in access_lines(caplog, "DEBUG")] == ["/health", "/livez"]


async def test_an_internal_error_is_logged_with_its_request_id_and_stack(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aura")
    http = client(BrokenConductor(), headers={"X-Request-Id": "my-2"})
    response = await http.post("/generate", json=BODY)
    assert response.status_code == 500
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert error.getMessage() == "request my-2 failed"
    assert error.__dict__["fields"] == {"request_id": "my-2"}
    assert error.exc_info is not None
    (line,) = access_lines(caplog)
    assert '"POST /generate HTTP/1.1" 500 Internal Server Error ' in line
    assert line.endswith("request_id=my-2")
    assert " job_id=" in line


def test_a_client_that_left_has_nginx_s_status(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aura")
    log_request("POST", "/generate", 499, 0.25, {})
    assert access_lines(caplog) == [
        '- - "POST /generate HTTP/1.1" 499 Client Closed Request 250.0ms'
    ]
